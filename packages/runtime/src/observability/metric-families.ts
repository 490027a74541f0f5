// SPDX-License-Identifier: Apache-2.0
import { DynamoError } from "@dynamo-ts/protocols/internal";
import promClient from "prom-client";
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

type PromMetric = promClient.Counter | promClient.Gauge | promClient.Histogram;

interface Family {
	readonly type: MetricType;
	readonly help: string;
	/** Sorted and joined. */
	readonly labelKey: string;
	readonly metric: PromMetric;
	/** Fixed labels of everything opened so far. */
	readonly opened: Set<string>;
}

/** The families of one page. prom-client counts; the page is written here, in the order that Dynamo writes it. */
export class FamilyTable {
	readonly #families = new Map<string, Family>();

	/**
	 * Opens a family for one set of fixed labels.
	 * @throws DynamoError `Conflict` when that was done before, `InvalidArgument` when the family has another type or
	 * other label names.
	 */
	open<_P, M>(request: FamilyRequest): MetricVec<M> {
		const labelNames = [...Object.keys(request.fixed), ...request.variable].sort();
		const labelKey = labelNames.join(",");
		let family = this.#families.get(request.name);
		if (family === undefined) {
			family = {
				type: request.type,
				help: request.help,
				labelKey,
				metric: makeMetric(request, labelNames),
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
		const openKey = seriesKey(request.fixed);
		if (family.opened.has(openKey)) {
			throw new DynamoError("Conflict", `metric ${request.name} with labels {${openKey}} exists already`);
		}
		family.opened.add(openKey);
		return new Vec(family.metric, request) as unknown as MetricVec<M>;
	}

	/** All families by name; one without series is left out. */
	async render(): Promise<string> {
		let page = "";
		for (const name of [...this.#families.keys()].sort()) {
			const family = this.#families.get(name) as Family;
			const { values } = await family.metric.get();
			if (values.length === 0) continue;
			page += `# HELP ${name} ${escapeHelp(family.help)}\n# TYPE ${name} ${family.type}\n`;
			page += family.type === "histogram" ? renderHistogram(name, values) : renderPlain(name, values);
		}
		return page;
	}
}

function makeMetric(request: FamilyRequest, labelNames: string[]): PromMetric {
	const options = { name: request.name, help: request.help || request.name, labelNames, registers: [] };
	switch (request.type) {
		case "counter":
			return new promClient.Counter(options);
		case "gauge":
			return new promClient.Gauge(options);
		case "histogram": {
			const { buckets } = request;
			if (buckets === undefined) return new promClient.Histogram(options);
			if (buckets.some((bound, i) => !Number.isFinite(bound) || (i > 0 && bound <= (buckets[i - 1] as number)))) {
				throw new DynamoError("InvalidArgument", `metric ${request.name}: buckets must be finite and rising`);
			}
			return new promClient.Histogram({ ...options, buckets: [...buckets] });
		}
	}
}

class Vec implements MetricVec<unknown> {
	readonly #metric: PromMetric;
	readonly #request: FamilyRequest;
	readonly #series = new Map<string, unknown>();

	constructor(metric: PromMetric, request: FamilyRequest) {
		this.#metric = metric;
		this.#request = request;
	}

	withLabelValues(...values: string[]): unknown {
		const key = values.length === 1 ? (values[0] as string) : JSON.stringify(values);
		const known = this.#series.get(key);
		if (known !== undefined) return known;
		const labels = this.#labels(values);
		const series = this.#metric.labels(labels);
		// Makes the series appear at 0.
		if ("observe" in series) (this.#metric as promClient.Histogram).zero(labels);
		else series.inc(0);
		this.#series.set(key, series);
		return series;
	}

	remove(...values: string[]): void {
		this.#metric.remove(this.#labels(values));
		this.#series.delete(values.length === 1 ? (values[0] as string) : JSON.stringify(values));
	}

	reset(): void {
		for (const key of [...this.#series.keys()]) {
			this.remove(...(this.#request.variable.length === 1 ? [key] : (JSON.parse(key) as string[])));
		}
	}

	#labels(values: string[]): Record<string, string> {
		const { name, fixed, variable } = this.#request;
		if (values.length !== variable.length) {
			throw new DynamoError(
				"InvalidArgument",
				`metric ${name} has the labels [${variable.join(", ")}]: ${values.length} values were given`,
			);
		}
		const labels: Record<string, string> = { ...fixed };
		for (const [index, label] of variable.entries()) labels[label] = values[index] as string;
		return labels;
	}
}

type Value = promClient.MetricValue<string>;

function renderPlain(name: string, values: readonly Value[]): string {
	let text = "";
	for (const value of values) {
		const labels = labelText(value.labels);
		text += `${name}${labels === "" ? "" : `{${labels}}`} ${formatNumber(value.value)}\n`;
	}
	return text;
}

function renderHistogram(name: string, values: readonly promClient.MetricValueWithName<string>[]): string {
	let text = "";
	for (const value of values) {
		const { le, ...rest } = value.labels;
		const labels = labelText(rest);
		if (value.metricName?.endsWith("_bucket")) {
			text += `${name}_bucket{${labels === "" ? "" : `${labels},`}le="${le}"} ${formatNumber(value.value)}\n`;
		} else {
			text += `${value.metricName}${labels === "" ? "" : `{${labels}}`} ${formatNumber(value.value)}\n`;
		}
	}
	return text;
}

function labelText(labels: Partial<Record<string, string | number>>): string {
	return Object.keys(labels)
		.sort()
		.map((key) => `${key}="${escapeValue(String(labels[key]))}"`)
		.join(",");
}

function seriesKey(labels: Readonly<Record<string, string>>): string {
	return labelText(labels);
}

function escapeValue(text: string): string {
	return text.replace(/[\\"\n]/g, (c) => (c === "\n" ? "\\n" : `\\${c}`));
}

function escapeHelp(text: string): string {
	return text.replace(/[\\\n]/g, (c) => (c === "\n" ? "\\n" : "\\\\"));
}

function formatNumber(value: number): string {
	if (value === Number.POSITIVE_INFINITY) return "+Inf";
	if (value === Number.NEGATIVE_INFINITY) return "-Inf";
	return String(value);
}
