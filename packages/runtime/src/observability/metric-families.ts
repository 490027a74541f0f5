// SPDX-License-Identifier: Apache-2.0
import { DynamoError } from "@dynamo-ts/protocols/internal";
import { CounterSeries, DEFAULT_BUCKETS, GaugeSeries, HistogramSeries, type Series } from "./metric-series.js";
import type { MetricVec } from "./metrics.js";

export type MetricType = "counter" | "gauge" | "histogram";

export interface FamilyRequest {
	readonly type: MetricType;
	/** The full name. */
	readonly name: string;
	readonly help: string;
	/** Labels with one value for all series opened by this request. */
	readonly fixed: Readonly<Record<string, string>>;
	/** Names of labels whose values are given per series. */
	readonly variable: readonly string[];
	readonly buckets: readonly number[] | undefined;
}

interface Family {
	readonly type: MetricType;
	readonly help: string;
	/** Sorted and joined. */
	readonly labelKey: string;
	readonly make: () => Series;
	/** By their labels as they are written; in the order in which they were made. */
	readonly series: Map<string, Series>;
	/** Fixed labels of everything opened so far. */
	readonly opened: Set<string>;
}

/** The families of one page. The page has the order that Dynamo writes. */
export class FamilyTable {
	readonly #families = new Map<string, Family>();

	/**
	 * Opens a family for one set of fixed labels.
	 * @throws DynamoError `Conflict` when that was done before, `InvalidArgument` when the family has another type or
	 * other label names.
	 */
	open<M>(request: FamilyRequest): MetricVec<M> {
		const labelNames = [...Object.keys(request.fixed), ...request.variable].sort();
		const labelKey = labelNames.join(",");
		let family = this.#families.get(request.name);
		if (family === undefined) {
			family = {
				type: request.type,
				help: request.help,
				labelKey,
				make: seriesMaker(request),
				series: new Map(),
				opened: new Set(),
			};
			this.#families.set(request.name, family);
		}
		if (family.type !== request.type || family.labelKey !== labelKey) {
			throw new DynamoError(
				"InvalidArgument",
				`metric ${request.name} is a ${family.type} with labels [${family.labelKey}]: it cannot be a ${request.type} with [${labelKey}] too`,
			);
		}
		const openKey = labelText(request.fixed);
		if (family.opened.has(openKey)) {
			throw new DynamoError("Conflict", `metric ${request.name} with labels {${openKey}} exists already`);
		}
		family.opened.add(openKey);
		return new Vec(family, request) as unknown as MetricVec<M>;
	}

	/** All families by name; one without series is left out. */
	render(): string {
		let page = "";
		for (const name of [...this.#families.keys()].sort()) {
			const family = this.#families.get(name) as Family;
			if (family.series.size === 0) continue;
			page += `# HELP ${name} ${escapeHelp(family.help)}\n# TYPE ${name} ${family.type}\n`;
			for (const [labels, series] of family.series) page += series.render(name, labels);
		}
		return page;
	}
}

function seriesMaker(request: FamilyRequest): () => Series {
	switch (request.type) {
		case "counter":
			return () => new CounterSeries();
		case "gauge":
			return () => new GaugeSeries();
		case "histogram": {
			const buckets = [...(request.buckets ?? DEFAULT_BUCKETS)];
			if (buckets.some((bound, i) => !Number.isFinite(bound) || (i > 0 && bound <= (buckets[i - 1] as number)))) {
				throw new DynamoError("InvalidArgument", `metric ${request.name}: buckets must be finite and rising`);
			}
			return () => new HistogramSeries(buckets);
		}
	}
}

class Vec implements MetricVec<unknown> {
	readonly #family: Family;
	readonly #request: FamilyRequest;
	/** By the values; finding one must not cost more than counting. */
	readonly #known = new Map<string, { readonly series: Series; readonly labels: string }>();

	constructor(family: Family, request: FamilyRequest) {
		this.#family = family;
		this.#request = request;
	}

	withLabelValues(...values: string[]): unknown {
		const key = keyOf(values);
		const known = this.#known.get(key);
		if (known !== undefined) return known.series;
		const labels = this.#labels(values);
		const series = this.#family.make();
		this.#family.series.set(labels, series);
		this.#known.set(key, { series, labels });
		return series;
	}

	remove(...values: string[]): void {
		this.#family.series.delete(this.#labels(values));
		this.#known.delete(keyOf(values));
	}

	reset(): void {
		for (const { labels } of this.#known.values()) this.#family.series.delete(labels);
		this.#known.clear();
	}

	#labels(values: string[]): string {
		const { name, fixed, variable } = this.#request;
		if (values.length !== variable.length) {
			throw new DynamoError(
				"InvalidArgument",
				`metric ${name} has the labels [${variable.join(", ")}]: ${values.length} values were given`,
			);
		}
		const labels: Record<string, string> = { ...fixed };
		for (const [index, label] of variable.entries()) labels[label] = values[index] as string;
		return labelText(labels);
	}
}

/** Different for different values, whatever is in them. */
function keyOf(values: readonly string[]): string {
	if (values.length === 1) return values[0] as string;
	let key = "";
	for (let i = 0; i < values.length; i++) {
		const value = values[i] as string;
		key += `${value.length}:${value}`;
	}
	return key;
}

function labelText(labels: Readonly<Record<string, string>>): string {
	return Object.keys(labels)
		.sort()
		.map((key) => `${key}="${escapeValue(labels[key] as string)}"`)
		.join(",");
}

function escapeValue(text: string): string {
	return text.replace(/[\\"\n]/g, (c) => (c === "\n" ? "\\n" : `\\${c}`));
}

function escapeHelp(text: string): string {
	return text.replace(/[\\\n]/g, (c) => (c === "\n" ? "\\n" : "\\\\"));
}
