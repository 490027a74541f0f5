// SPDX-License-Identifier: Apache-2.0
// Reads the few series of a metrics page that a live view needs, and skips the rest: pages can have thousands of lines,
// and come from other programs.

export interface Sample {
	readonly labels: Readonly<Record<string, string>>;
	readonly value: number;
}

const NO_LABELS: Readonly<Record<string, string>> = {};

/** Samples by the name in their line; lines that cannot be read are left out. */
export class MetricsPage {
	private readonly samples = new Map<string, Sample[]>();

	/** @param wanted names as they stand in the lines, `_bucket`, `_sum` and `_count` included. */
	constructor(text: string, wanted: ReadonlySet<string>) {
		for (let from = 0; from < text.length; ) {
			let to = text.indexOf("\n", from);
			if (to < 0) to = text.length;
			const end = nameEnd(text, from, to);
			const name = text.slice(from, end);
			if (wanted.has(name)) this.take(name, text.slice(end, to));
			from = to + 1;
		}
	}

	private take(name: string, rest: string): void {
		const close = rest.startsWith("{") ? rest.lastIndexOf("}") : -1;
		const value = number(
			rest
				.slice(close + 1)
				.trim()
				.split(/\s+/, 1)[0] as string,
		);
		if (Number.isNaN(value)) return;
		const labels = close < 0 ? NO_LABELS : labelsOf(rest.slice(1, close));
		const list = this.samples.get(name);
		if (list === undefined) this.samples.set(name, [{ labels, value }]);
		else list.push({ labels, value });
	}

	/** All samples of a name. */
	all(name: string): readonly Sample[] {
		return this.samples.get(name) ?? [];
	}

	/** Sum over the samples with these labels (a sample without the label counts); null when there is none. */
	sum(name: string, labels: Readonly<Record<string, string>> = {}): number | null {
		let sum: number | null = null;
		for (const sample of this.all(name)) if (matches(sample, labels)) sum = (sum ?? 0) + sample.value;
		return sum;
	}

	/** Sum of the first name that is on the page. */
	sumOfFirst(names: readonly string[], labels?: Readonly<Record<string, string>>): number | null {
		for (const name of names) {
			const sum = this.sum(name, labels);
			if (sum !== null) return sum;
		}
		return null;
	}

	/** Mean of the first name that is on the page. */
	meanOfFirst(names: readonly string[]): number | null {
		for (const name of names) {
			const samples = this.all(name);
			if (samples.length > 0) return samples.reduce((sum, { value }) => sum + value, 0) / samples.length;
		}
		return null;
	}
}

/** Labels between braces; pages can have thousands of them, so they are read without a pattern. */
function labelsOf(text: string): Record<string, string> {
	const labels: Record<string, string> = {};
	for (let from = 0; ; ) {
		const equals = text.indexOf('="', from);
		if (equals < 0) return labels;
		let end = equals + 2;
		let escaped = false;
		for (; end < text.length; end++) {
			const c = text.charCodeAt(end);
			if (c === 0x22) break;
			if (c === 0x5c) {
				escaped = true;
				end++;
			}
		}
		const value = text.slice(equals + 2, end);
		labels[text.slice(from, equals).replace(/^[\s,]+/, "")] = escaped
			? value.replace(/\\(.)/g, (_all, c: string) => (c === "n" ? "\n" : c))
			: value;
		from = end + 1;
	}
}

function nameEnd(text: string, from: number, to: number): number {
	let at = from;
	for (; at < to; at++) {
		const c = text.charCodeAt(at);
		if (c === 0x7b || c === 0x20 || c === 0x09) break;
	}
	return at;
}

function number(text: string): number {
	if (text === "+Inf" || text === "Inf") return Number.POSITIVE_INFINITY;
	return text === "" ? Number.NaN : Number(text);
}

function matches({ labels }: Sample, wanted: Readonly<Record<string, string>>): boolean {
	for (const [name, value] of Object.entries(wanted)) {
		if (labels[name] !== undefined && labels[name] !== value) return false;
	}
	return true;
}
