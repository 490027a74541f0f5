// SPDX-License-Identifier: Apache-2.0
import { parsePrometheus } from "@dynamo-ts/testing/internal";
import fc from "fast-check";
import { expect, test } from "vitest";
import { latencyBetween } from "./frontend-reading.js";
import { MetricsPage } from "./page-reader.js";

test("reads what is wanted, and only that", () => {
	const text = [
		"# HELP a_total Things",
		"# TYPE a_total counter",
		'a_total{model="m",note="with } and \\" and , in it"} 3',
		'a_total{model="n"} 4 1700000000000',
		"a_total_more 9",
		"b 1e-3",
		"c NaN",
		"broken{",
		"",
	].join("\n");
	const page = new MetricsPage(text, new Set(["a_total", "b", "c", "broken"]));
	expect(page.sum("a_total")).toBe(7);
	expect(page.sum("a_total", { model: "m" })).toBe(3);
	expect(page.all("a_total")[0]?.labels.note).toBe('with } and " and , in it');
	expect(page.sum("b")).toBe(0.001);
	expect(page.sum("c")).toBe(null);
	expect(page.all("broken")).toEqual([]);
	expect(page.sumOfFirst(["none", "b", "a_total"])).toBe(0.001);
	expect(page.meanOfFirst(["a_total"])).toBe(3.5);
	expect(page.sum("a_total_more")).toBe(null);
});

test("reads the same as the strict parser, whatever labels hold", () => {
	const value = fc.string({ unit: "grapheme", maxLength: 12 }).filter((text) => !/[\r\u2028\u2029]/.test(text));
	const series = fc.record({ model: value, value: fc.double({ noNaN: true, noDefaultInfinity: true }) });
	fc.assert(
		fc.property(fc.uniqueArray(series, { selector: ({ model }) => model, maxLength: 8 }), (all) => {
			const escaped = (text: string) => text.replace(/\\/g, "\\\\").replace(/"/g, '\\"').replace(/\n/g, "\\n");
			const text = all.map(({ model, value }) => `x{model="${escaped(model)}"} ${value}\n`).join("");
			const strict = parsePrometheus(text).select("x");
			const ours = new MetricsPage(text, new Set(["x"])).all("x");
			expect(ours.map(({ labels, value }) => [labels.model, value])).toEqual(
				strict.map(({ labels, value }) => [labels.model, value]),
			);
		}),
	);
});

test("quantiles lie within the buckets of what was observed between two readings", () => {
	const reading = (counts: readonly number[], sum: number) => {
		const bounds = [0.1, 0.2, 0.4, Number.POSITIVE_INFINITY];
		const upTo = (i: number) => counts.slice(0, i + 1).reduce((total, count) => total + count, 0);
		return { buckets: new Map(bounds.map((bound, i) => [bound, upTo(i)])), sum, count: upTo(3) };
	};
	const before = reading([5, 0, 0, 0], 0.25);
	expect(latencyBetween([[before, before]])).toEqual({ p50: null, p99: null, mean: null });
	const after = latencyBetween([[before, reading([5, 8, 2, 0], 2.25)]]);
	expect(after.mean).toBeCloseTo(0.2);
	expect(after.p50).toBeGreaterThan(0.1);
	expect(after.p50).toBeLessThan(0.2);
	expect(after.p99).toBeGreaterThan(0.2);
	expect(after.p99).toBeLessThanOrEqual(0.4);
	// Beyond the last bound, and after a start from 0.
	expect(latencyBetween([[reading([9, 9, 9, 9], 9), reading([0, 0, 0, 2], 4)]])).toEqual({
		p50: 0.4,
		p99: 0.4,
		mean: 2,
	});
});
