// SPDX-License-Identifier: Apache-2.0

/** One sample line. */
export interface PromSample {
	/** As written, `_bucket`, `_sum` and `_count` included. */
	readonly name: string;
	readonly labels: Readonly<Record<string, string>>;
	readonly value: number;
}

export interface PromFamily {
	readonly name: string;
	readonly help: string | undefined;
	readonly type: "counter" | "gauge" | "histogram" | "summary" | "untyped";
	readonly samples: PromSample[];
}

/** A scraped page. */
export interface PromPage {
	readonly families: ReadonlyMap<string, PromFamily>;
	/** All samples of that name whose labels include the given ones. */
	select(name: string, labels?: Record<string, string>): PromSample[];
	/** Sum over {@link select}; 0 when there is none. */
	sum(name: string, labels?: Record<string, string>): number;
	/** The value of the only sample that matches; undefined when there is none. @throws when there are several. */
	value(name: string, labels?: Record<string, string>): number | undefined;
}

const SAMPLE = /^([A-Za-z_:][A-Za-z0-9_:]*)(\{.*\})?[ \t]+(\S+)(?:[ \t]+-?\d+)?$/;
const TYPES = new Set(["counter", "gauge", "histogram", "summary", "untyped"]);

function unescapeValue(text: string): string {
	return text.replace(/\\(.)/g, (_all, c: string) => (c === "n" ? "\n" : c));
}

function parseLabels(text: string, line: string): Record<string, string> {
	const labels: Record<string, string> = {};
	let at = 0;
	const label = /\s*([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\]|\\.)*)"\s*(,|$)/y;
	while (at < text.length) {
		label.lastIndex = at;
		const match = label.exec(text);
		if (match === null) throw new Error(`bad labels: ${line}`);
		const name = match[1] as string;
		if (name in labels) throw new Error(`label ${name} twice: ${line}`);
		labels[name] = unescapeValue(match[2] as string);
		at = label.lastIndex;
	}
	return labels;
}

function parseValue(text: string, line: string): number {
	if (text === "+Inf") return Number.POSITIVE_INFINITY;
	if (text === "-Inf") return Number.NEGATIVE_INFINITY;
	if (text === "NaN") return Number.NaN;
	const value = Number(text);
	if (Number.isNaN(value)) throw new Error(`bad value: ${line}`);
	return value;
}

/** Name of the family that a sample belongs to: histogram suffixes are cut only where such a family was declared. */
function familyOf(name: string, families: Map<string, PromFamily>): string {
	const base = name.replace(/_(bucket|sum|count)$/, "");
	const type = families.get(base)?.type;
	return base !== name && (type === "histogram" || type === "summary") ? base : name;
}

/**
 * Parses Prometheus' text format (version 0.0.4), strictly.
 * @throws Error that quotes the line: a line that is none of the format's, a repeated TYPE or HELP, a family whose
 * samples are scattered, the same series twice, a histogram that is not cumulative or lacks its +Inf bucket.
 */
export function parsePrometheus(text: string): PromPage {
	const families = new Map<string, PromFamily & { help: string | undefined; type: PromFamily["type"] }>();
	const seen = new Set<string>();
	const closed = new Set<string>();
	let current: string | undefined;
	const enter = (name: string, line: string) => {
		if (name !== current) {
			if (closed.has(name)) throw new Error(`the family ${name} is scattered: ${line}`);
			if (current !== undefined) closed.add(current);
			current = name;
		}
		let family = families.get(name);
		if (family === undefined) {
			family = { name, help: undefined, type: "untyped", samples: [] };
			families.set(name, family);
		}
		return family;
	};
	if (text !== "" && !text.endsWith("\n")) throw new Error("the page does not end with a newline");
	for (const line of text.split("\n")) {
		if (line.trim() === "") continue;
		if (line.startsWith("#")) {
			const [, keyword, name, ...rest] = line.split(" ");
			if (keyword !== "HELP" && keyword !== "TYPE") continue;
			const family = enter(name as string, line);
			if (keyword === "HELP") {
				if (family.help !== undefined) throw new Error(`HELP twice: ${line}`);
				(family as { help: string }).help = rest.join(" ");
			} else {
				if (family.type !== "untyped" || family.samples.length > 0 || !TYPES.has(rest[0] as string)) {
					throw new Error(`bad TYPE: ${line}`);
				}
				(family as { type: string }).type = rest[0] as string;
			}
			continue;
		}
		const match = SAMPLE.exec(line);
		if (match === null) throw new Error(`not a sample: ${line}`);
		const name = match[1] as string;
		const labels = match[2] === undefined ? {} : parseLabels(match[2].slice(1, -1), line);
		const key = name + JSON.stringify(Object.entries(labels).sort());
		if (seen.has(key)) throw new Error(`series twice: ${line}`);
		seen.add(key);
		enter(familyOf(name, families), line).samples.push({ name, labels, value: parseValue(match[3] as string, line) });
	}
	for (const family of families.values()) if (family.type === "histogram") checkHistogram(family);
	return page(families);
}

function checkHistogram(family: PromFamily): void {
	const last = new Map<string, PromSample>();
	for (const sample of family.samples) {
		if (!sample.name.endsWith("_bucket")) continue;
		const { le, ...rest } = sample.labels;
		if (le === undefined) throw new Error(`a bucket without le in ${family.name}`);
		const key = JSON.stringify(Object.entries(rest).sort());
		const before = last.get(key);
		if (before !== undefined) {
			if (parseValue(before.labels.le as string, le) >= parseValue(le, le) || before.value > sample.value) {
				throw new Error(`${family.name}: buckets are not cumulative at le=${le}`);
			}
		}
		last.set(key, sample);
	}
	for (const sample of last.values()) {
		if (sample.labels.le !== "+Inf") throw new Error(`${family.name}: no +Inf bucket`);
	}
}

function page(families: ReadonlyMap<string, PromFamily>): PromPage {
	const samples = new Map<string, PromSample[]>();
	for (const family of families.values()) {
		for (const sample of family.samples) {
			const list = samples.get(sample.name);
			if (list === undefined) samples.set(sample.name, [sample]);
			else list.push(sample);
		}
	}
	const select = (name: string, labels: Record<string, string> = {}): PromSample[] =>
		(samples.get(name) ?? []).filter((s) => Object.entries(labels).every(([key, value]) => s.labels[key] === value));
	return {
		families,
		select,
		sum: (name, labels) => select(name, labels).reduce((total, sample) => total + sample.value, 0),
		value: (name, labels) => {
			const found = select(name, labels);
			if (found.length > 1) throw new Error(`${found.length} samples match ${name} ${JSON.stringify(labels)}`);
			return found[0]?.value;
		},
	};
}
