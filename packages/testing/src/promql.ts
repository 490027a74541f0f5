// SPDX-License-Identifier: Apache-2.0
// What a PromQL expression asks for; enough of the language for the expressions of this project.

/** A selector: the name of the series, and the labels that it filters by. */
export interface Selector {
	readonly name: string;
	readonly labels: readonly string[];
}

const WORDS = new Set(["by", "without", "on", "ignoring", "group_left", "group_right", "and", "or", "unless", "bool"]);
/** Aggregations; a word of these before `by` or a bracket is no series. */
const AGGREGATIONS = new Set(["sum", "avg", "min", "max", "count", "topk", "bottomk", "quantile", "stddev", "group"]);
/** Strings, name lists after `by` and the like, ranges, then names. */
const TOKEN =
	/"(?:[^"\\]|\\.)*"|\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)|\[[^\]]*\]|([A-Za-z_:][A-Za-z0-9_:]*)(\s*\()?(\s*\{((?:[^{}"]|"(?:[^"\\]|\\.)*")*)\})?/g;

/** The selectors of an expression, in their order. */
export function selectorsOf(expr: string): Selector[] {
	const selectors: Selector[] = [];
	for (const [, name, call, , inner] of expr.matchAll(TOKEN)) {
		if (name === undefined || call !== undefined || WORDS.has(name) || AGGREGATIONS.has(name)) continue;
		const labels = [...(inner ?? "").matchAll(/([A-Za-z_][A-Za-z0-9_]*)\s*(?:=~|!~|!=|=)\s*"/g)];
		selectors.push({ name, labels: labels.map((match) => match[1] as string) });
	}
	return selectors;
}

/** A dashboard as far as its queries go. */
export interface DashboardQueries {
	readonly panels?: readonly { readonly title?: string; readonly targets?: readonly { readonly expr?: string }[] }[];
}

/** Every query of a dashboard, with its panel's title. */
export function dashboardQueries(dashboard: DashboardQueries): { panel: string; expr: string }[] {
	return (dashboard.panels ?? []).flatMap(({ title, targets }) =>
		(targets ?? []).map(({ expr }) => ({ panel: title ?? "", expr: expr ?? "" })),
	);
}

/** The query with values for Grafana's variables. */
export function withVariables(expr: string, values: Readonly<Record<string, string>>): string {
	return expr.replace(/\$(?:\{(\w+)\}|(\w+))/g, (all, braced?: string, bare?: string) => {
		return values[(braced ?? bare) as string] ?? all;
	});
}
