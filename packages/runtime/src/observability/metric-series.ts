// SPDX-License-Identifier: Apache-2.0
// The numbers themselves. Counting is a few instructions without a look at labels: a token of each stream passes here.
// prom-client collects them at a scrape and writes the page.

/** Upper bounds of a histogram that names none, as all Prometheus libraries have them. */
export const DEFAULT_BUCKETS: readonly number[] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];

/** The labels of a series, sorted by name. */
export type SeriesLabels = Readonly<Record<string, string>>;

/** A line of the page, as prom-client takes it: name with labels, and the value. */
export interface SeriesLine {
	readonly metricName: string;
	readonly value: number;
}

/** What a histogram has counted. */
export interface HistogramValue {
	/** Upper bounds, rising, without the infinite one. */
	readonly bounds: readonly number[];
	/** Observations per bucket, not added up; one more than bounds. */
	readonly counts: readonly number[];
	readonly sum: number;
}

/** One series of a family. */
export interface Series {
	/** The number of a counter or gauge; what a histogram counted. */
	value(): number | HistogramValue;
}

/**
 * The lines of a series, in the order of the page.
 * @param labels as they stand on the page, without braces.
 */
export function seriesLines(name: string, labels: string, value: number | HistogramValue): SeriesLine[] {
	if (typeof value === "number") return [{ metricName: withLabels(name, labels), value }];
	const lines: SeriesLine[] = [];
	const start = labels === "" ? `${name}_bucket{le="` : `${name}_bucket{${labels},le="`;
	let total = 0;
	for (let i = 0; i < value.counts.length; i++) {
		total += value.counts[i] as number;
		lines.push({ metricName: `${start}${value.bounds[i] ?? "+Inf"}"}`, value: total });
	}
	lines.push({ metricName: withLabels(`${name}_sum`, labels), value: value.sum });
	lines.push({ metricName: withLabels(`${name}_count`, labels), value: total });
	return lines;
}

function requireNumber(value: number): void {
	if (!Number.isFinite(value)) throw new TypeError(`a metric cannot take the value ${String(value)}`);
}

function withLabels(name: string, labels: string): string {
	return labels === "" ? name : `${name}{${labels}}`;
}

export class CounterSeries implements Series {
	#value = 0;

	/** @throws TypeError for what is not a number from 0 on. */
	inc(by = 1): void {
		requireNumber(by);
		if (by < 0) throw new TypeError(`a counter cannot go down by ${-by}`);
		this.#value += by;
	}

	value(): number {
		return this.#value;
	}
}

export class GaugeSeries implements Series {
	#value = 0;

	set(value: number): void {
		this.#value = value;
	}

	inc(by = 1): void {
		this.#value += by;
	}

	dec(by = 1): void {
		this.#value -= by;
	}

	value(): number {
		return this.#value;
	}
}

export class HistogramSeries implements Series {
	/** Rising. */
	readonly #bounds: readonly number[];
	/** Observations per bucket, not added up; the last is for what is beyond all bounds. */
	readonly #counts: number[];
	#sum = 0;

	constructor(bounds: readonly number[]) {
		this.#bounds = bounds;
		this.#counts = new Array<number>(bounds.length + 1).fill(0);
	}

	/** @throws TypeError for what is not a finite number. */
	observe(value: number): void {
		requireNumber(value);
		const bounds = this.#bounds;
		let bucket = 0;
		while (bucket < bounds.length && value > (bounds[bucket] as number)) bucket++;
		(this.#counts[bucket] as number)++;
		this.#sum += value;
	}

	value(): HistogramValue {
		return { bounds: this.#bounds, counts: [...this.#counts], sum: this.#sum };
	}
}
