// SPDX-License-Identifier: Apache-2.0
// The numbers themselves. Counting is a few instructions: a token of each stream passes here.

/** Upper bounds of a histogram that names none, as all Prometheus libraries have them. */
export const DEFAULT_BUCKETS: readonly number[] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];

/** One series of a family, as it stands on the page. */
export interface Series {
	/** @param labels written and joined, without braces; `""` for none. */
	render(name: string, labels: string): string;
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

	render(name: string, labels: string): string {
		return line(name, labels, this.#value);
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

	render(name: string, labels: string): string {
		return line(name, labels, this.#value);
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

	render(name: string, labels: string): string {
		const before = labels === "" ? "" : `${labels},`;
		let text = "";
		let total = 0;
		for (const [i, count] of this.#counts.entries()) {
			total += count;
			text += line(`${name}_bucket`, `${before}le="${this.#bounds[i] ?? "+Inf"}"`, total);
		}
		return text + line(`${name}_sum`, labels, this.#sum) + line(`${name}_count`, labels, total);
	}
}

function line(name: string, labels: string, value: number): string {
	return `${name}${labels === "" ? "" : `{${labels}}`} ${numberText(value)}\n`;
}

function numberText(value: number): string {
	if (value === Number.POSITIVE_INFINITY) return "+Inf";
	if (value === Number.NEGATIVE_INFINITY) return "-Inf";
	return String(value);
}
