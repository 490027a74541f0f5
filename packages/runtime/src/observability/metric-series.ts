// SPDX-License-Identifier: Apache-2.0
// The numbers themselves. Counting is a few instructions without a look at labels: a token of each stream passes here.
// prom-client collects them at a scrape and writes the page.
import type { MetricValueWithName } from "prom-client";

/** Upper bounds of a histogram that names none, as all Prometheus libraries have them. */
export const DEFAULT_BUCKETS: readonly number[] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];

/** The labels of a series, sorted by name. */
export type SeriesLabels = Readonly<Record<string, string>>;

/** A line of the page, as prom-client takes it. */
export type SeriesValue = Pick<MetricValueWithName<string>, "labels" | "value"> & { metricName: string };

/** One series of a family. */
export interface Series {
	/** Its lines, in the order of the page. */
	collect(name: string, labels: SeriesLabels): SeriesValue[];
}

function requireNumber(value: number): void {
	if (!Number.isFinite(value)) throw new TypeError(`a metric cannot take the value ${String(value)}`);
}

export class CounterSeries implements Series {
	#value = 0;

	/** @throws TypeError for what is not a number from 0 on. */
	inc(by = 1): void {
		requireNumber(by);
		if (by < 0) throw new TypeError(`a counter cannot go down by ${-by}`);
		this.#value += by;
	}

	collect(name: string, labels: SeriesLabels): SeriesValue[] {
		return [{ metricName: name, labels, value: this.#value }];
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

	collect(name: string, labels: SeriesLabels): SeriesValue[] {
		return [{ metricName: name, labels, value: this.#value }];
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

	collect(name: string, labels: SeriesLabels): SeriesValue[] {
		const values: SeriesValue[] = [];
		let total = 0;
		for (const [i, count] of this.#counts.entries()) {
			total += count;
			values.push({ metricName: `${name}_bucket`, labels: { ...labels, le: this.#bounds[i] ?? "+Inf" }, value: total });
		}
		values.push({ metricName: `${name}_sum`, labels, value: this.#sum });
		values.push({ metricName: `${name}_count`, labels, value: total });
		return values;
	}
}
