// SPDX-License-Identifier: Apache-2.0
import { DynamoError } from "@dynamo-ts/protocols/internal";
import promClient from "prom-client";
import {
	CounterSeries,
	DEFAULT_BUCKETS,
	GaugeSeries,
	HistogramSeries,
	type Series,
	type SeriesLabels,
	type SeriesValue,
} from "./metric-series.js";
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

/** The values of a family at one moment. */
export interface FamilySnapshot {
	readonly name: string;
	readonly help: string;
	readonly type: MetricType;
	/** With the lines that they have on the page. */
	readonly series: readonly { readonly labels: SeriesLabels; readonly lines: readonly SeriesValue[] }[];
}

/** A family as prom-client's registry collects it. */
class Family {
	readonly name: string;
	readonly help: string;
	readonly type: MetricType;
	/** Sorted and joined. */
	readonly labelKey: string;
	readonly make: () => Series;
	/** By the text of their labels; in the order in which they were made. */
	readonly series = new Map<string, { readonly series: Series; readonly labels: SeriesLabels }>();
	/** Fixed labels of everything opened so far. */
	readonly opened = new Set<string>();

	constructor(request: FamilyRequest, labelKey: string) {
		this.name = request.name;
		this.help = request.help;
		this.type = request.type;
		this.labelKey = labelKey;
		this.make = seriesMaker(request);
	}

	/** Called by prom-client's registry at a scrape. */
	async get(): Promise<{ name: string; help: string; type: MetricType; values: SeriesValue[] }> {
		const values = [...this.series.values()].flatMap(({ series, labels }) => series.collect(this.name, labels));
		return { name: this.name, help: this.help, type: this.type, values };
	}
}

/** The families of one page. The page has the order that Dynamo writes. */
export class FamilyTable {
	readonly #families = new Map<string, Family>();
	readonly #registry = new promClient.Registry();

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
			family = new Family(request, labelKey);
			this.#registry.registerMetric(family as unknown as promClient.Metric);
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

	/** The values of all families by name; one without series is left out. */
	snapshot(): FamilySnapshot[] {
		return [...this.#families.values()]
			.filter(({ series }) => series.size > 0)
			.sort((a, b) => (a.name < b.name ? -1 : 1))
			.map(({ name, help, type, series }) => ({
				name,
				help,
				type,
				series: [...series.values()].map(({ series: one, labels }) => ({ labels, lines: one.collect(name, labels) })),
			}));
	}

	/** All families by name; one without series is left out. */
	async render(): Promise<string> {
		let page = "";
		for (const name of [...this.#families.keys()].sort()) {
			if (this.#families.get(name)?.series.size === 0) continue;
			page += `${await this.#registry.getSingleMetricAsString(name)}\n`;
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
	readonly #known = new Map<string, { readonly series: Series; readonly text: string }>();

	constructor(family: Family, request: FamilyRequest) {
		this.#family = family;
		this.#request = request;
	}

	withLabelValues(...values: string[]): unknown {
		const key = keyOf(values);
		const known = this.#known.get(key);
		if (known !== undefined) return known.series;
		const labels = this.#labels(values);
		const text = labelText(labels);
		const series = this.#family.make();
		this.#family.series.set(text, { series, labels });
		this.#known.set(key, { series, text });
		return series;
	}

	remove(...values: string[]): void {
		this.#family.series.delete(labelText(this.#labels(values)));
		this.#known.delete(keyOf(values));
	}

	reset(): void {
		for (const { text } of this.#known.values()) this.#family.series.delete(text);
		this.#known.clear();
	}

	/** Sorted by name. */
	#labels(values: string[]): SeriesLabels {
		const { name, fixed, variable } = this.#request;
		if (values.length !== variable.length) {
			throw new DynamoError(
				"InvalidArgument",
				`metric ${name} has the labels [${variable.join(", ")}]: ${values.length} values were given`,
			);
		}
		const labels: [string, string][] = Object.entries(fixed);
		for (const [index, label] of variable.entries()) labels.push([label, values[index] as string]);
		return Object.fromEntries(labels.sort(([a], [b]) => (a < b ? -1 : 1)));
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

/** The same for the same labels, in whatever order they are given. */
function labelText(labels: SeriesLabels): string {
	return JSON.stringify(Object.entries(labels).sort(([a], [b]) => (a < b ? -1 : 1)));
}
