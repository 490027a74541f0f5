// SPDX-License-Identifier: Apache-2.0
// The families of one page and their series, as prom-client's registry collects them.
import { DynamoError } from "@dynamo-ts/protocols/internal";
import promClient from "prom-client";
import {
	CounterSeries,
	DEFAULT_BUCKETS,
	GaugeSeries,
	HistogramSeries,
	type HistogramValue,
	type Series,
	type SeriesLabels,
	type SeriesLine,
	seriesLines,
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

/** A family and what it counted, as data. */
export interface FamilySnapshot {
	readonly name: string;
	readonly help: string;
	readonly type: MetricType;
	readonly series: readonly { readonly labels: SeriesLabels; readonly value: number | HistogramValue }[];
}

/** A family as it stands on a page. */
export interface FamilyText {
	readonly name: string;
	/** Its lines, the last one with its line end. */
	readonly text: string;
}

interface KnownSeries {
	readonly series: Series;
	readonly labels: SeriesLabels;
	/** The labels as they stand on the page, without braces. */
	readonly shown: string;
}

/** A family as prom-client's registry collects it. */
class Family {
	readonly name: string;
	readonly help: string;
	readonly type: MetricType;
	/** Names of the variable labels, sorted and joined. */
	readonly variableKey: string;
	readonly make: () => Series;
	/** By the labels as they are shown; in the order in which they were made. */
	readonly series = new Map<string, KnownSeries>();
	/** Fixed labels of everything opened so far. */
	readonly opened = new Set<string>();

	constructor(request: FamilyRequest, variableKey: string) {
		this.name = request.name;
		this.help = request.help;
		this.type = request.type;
		this.variableKey = variableKey;
		this.make = seriesMaker(request);
	}

	/** Called by prom-client's registry when it writes text. */
	getForPromString(): { name: string; help: string; type: MetricType; values: SeriesLine[] } {
		const values: SeriesLine[] = [];
		for (const { series, shown } of this.series.values()) values.push(...seriesLines(this.name, shown, series.value()));
		return { name: this.name, help: this.help, type: this.type, values };
	}

	snapshot(): FamilySnapshot {
		const { name, help, type } = this;
		return {
			name,
			help,
			type,
			series: [...this.series.values()].map(({ series, labels }) => ({ labels, value: series.value() })),
		};
	}
}

/** The families of one page. */
export class FamilyTable {
	readonly #families = new Map<string, Family>();
	readonly #registry = new promClient.Registry();

	/**
	 * Opens a family for one set of fixed labels.
	 * @throws DynamoError `Conflict` when that was done before, `InvalidArgument` when the family has another type or
	 * other label names.
	 */
	open<M>(request: FamilyRequest): MetricVec<M> {
		const variableKey = [...request.variable].sort().join(", ");
		let family = this.#families.get(request.name);
		if (family === undefined) {
			family = new Family(request, variableKey);
			this.#registry.registerMetric(family as unknown as promClient.Metric);
			this.#families.set(request.name, family);
		}
		if (family.type !== request.type || family.variableKey !== variableKey) {
			throw new DynamoError(
				"InvalidArgument",
				`metric ${request.name} is a ${family.type} with the labels [${family.variableKey}]: it cannot be a ${request.type} with [${variableKey}] too`,
			);
		}
		const openKey = showLabels(request.fixed);
		if (family.opened.has(openKey)) {
			throw new DynamoError("Conflict", `metric ${request.name} with labels {${openKey}} exists already`);
		}
		family.opened.add(openKey);
		return new Vec(family, request) as unknown as MetricVec<M>;
	}

	/** Families that have series. */
	async render(): Promise<FamilyText[]> {
		const texts: FamilyText[] = [];
		for (const [name, family] of this.#families) {
			if (family.series.size === 0) continue;
			texts.push({ name, text: await familyText(this.#registry, name) });
		}
		return texts;
	}

	/** The same as data. */
	snapshot(): FamilySnapshot[] {
		return [...this.#families.values()].filter(({ series }) => series.size > 0).map((family) => family.snapshot());
	}
}

/** Writes a family that was given as data. */
export async function renderSnapshot(snapshot: FamilySnapshot): Promise<string> {
	const { name, help, type } = snapshot;
	const registry = new promClient.Registry();
	const values = snapshot.series.flatMap(({ labels, value }) => seriesLines(name, showLabels(labels), value));
	registry.registerMetric({
		name,
		getForPromString: () => ({ name, help, type, values }),
	} as unknown as promClient.Metric);
	return await familyText(registry, name);
}

/** A family as prom-client writes it, but for what is not a number: its `Nan` is not what the format says. */
export async function familyText(registry: promClient.Registry, name: string): Promise<string> {
	const text = `${await registry.getSingleMetricAsString(name)}\n`;
	return text.includes(" Nan\n") ? text.replaceAll(" Nan\n", " NaN\n") : text;
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
	readonly #known = new Map<string, KnownSeries>();

	constructor(family: Family, request: FamilyRequest) {
		this.#family = family;
		this.#request = request;
	}

	withLabelValues(...values: string[]): unknown {
		const key = keyOf(values);
		const known = this.#known.get(key);
		if (known !== undefined) return known.series;
		const labels = this.#labels(values);
		const made = { series: this.#family.make(), labels, shown: showLabels(labels) };
		this.#family.series.set(made.shown, made);
		this.#known.set(key, made);
		return made.series;
	}

	remove(...values: string[]): void {
		this.#drop(keyOf(values));
	}

	removeWhere(label: string, value: string): void {
		for (const [key, { labels }] of this.#known) if (labels[label] === value) this.#drop(key);
	}

	reset(): void {
		for (const key of [...this.#known.keys()]) this.#drop(key);
	}

	#drop(key: string): void {
		const known = this.#known.get(key);
		if (known === undefined) return;
		this.#known.delete(key);
		this.#family.series.delete(known.shown);
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
function showLabels(labels: SeriesLabels): string {
	return Object.keys(labels)
		.sort()
		.map((name) => `${name}="${escapeLabel(labels[name] as string)}"`)
		.join(",");
}

function escapeLabel(value: string): string {
	return /[\\\n"]/.test(value) ? value.replace(/[\\"]/g, "\\$&").replace(/\n/g, "\\n") : value;
}
