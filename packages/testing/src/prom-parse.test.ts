// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from "vitest";
import { parsePrometheus } from "./prom-parse.js";

const PAGE = `# HELP a_total Things, with a "quote"
# TYPE a_total counter
a_total{model="x/y",kind="a\\"b\\\\c\\nd"} 3
a_total{model="z",kind=""} 4
# TYPE h histogram
h_bucket{le="0"} 0
h_bucket{le="0.5"} 2
h_bucket{le="+Inf"} 5
h_sum 1.5e3
h_count 5
# TYPE g gauge
g -Inf
`;

describe("parsePrometheus", () => {
	it("reads families, labels and values", () => {
		const page = parsePrometheus(PAGE);
		expect([...page.families.values()].map((f) => [f.name, f.type, f.samples.length])).toEqual([
			["a_total", "counter", 2],
			["h", "histogram", 5],
			["g", "gauge", 1],
		]);
		expect(page.families.get("a_total")?.help).toBe('Things, with a "quote"');
		expect(page.select("a_total")[0]?.labels).toEqual({ model: "x/y", kind: 'a"b\\c\nd' });
		expect(page.sum("a_total")).toBe(7);
		expect(page.value("a_total", { model: "z" })).toBe(4);
		expect(page.value("a_total", { model: "q" })).toBeUndefined();
		expect(page.value("h_sum")).toBe(1500);
		expect(page.value("g")).toBe(Number.NEGATIVE_INFINITY);
		expect(() => page.value("a_total")).toThrow(/2 samples/);
	});

	it.each([
		["no newline at the end", "a 1"],
		["a bad value", "a one\n"],
		["bad labels", "a{b=1} 1\n"],
		["no sample", "hello world again\n"],
		["a series twice", 'a{b="1",c="2"} 1\na{c="2",b="1"} 2\n'],
		["a scattered family", 'a 1\nb 1\na{x="1"} 1\n'],
		["a late TYPE", "a 1\n# TYPE a counter\n"],
		["falling buckets", '# TYPE h histogram\nh_bucket{le="1"} 2\nh_bucket{le="+Inf"} 1\n'],
		["a histogram without +Inf", '# TYPE h histogram\nh_bucket{le="1"} 2\n'],
	])("refuses %s", (_name, text) => {
		expect(() => parsePrometheus(text)).toThrow();
	});
});
