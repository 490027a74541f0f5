// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from "vitest";
import { fixture } from "../testing/fixtures.js";
import { BUCKET_RANGES, computedBuckets } from "./computed-buckets.js";
import { fullMetricName, METRICS } from "./metric-catalogue.js";
import type { MetricFamily } from "./metric-family.js";

interface Recorded {
	name: string;
	type: string;
	labels: string[];
	buckets: string[];
}

const recorded = JSON.parse(fixture("observability/metric-families.json").toString("utf8")) as Recorded[];
const ours = new Map<string, MetricFamily>();
for (const group of Object.keys(METRICS) as (keyof typeof METRICS)[]) {
	for (const family of Object.values(METRICS[group])) {
		const name = fullMetricName(group, family.name);
		if (ours.has(name)) throw new Error(`${name} is there twice`);
		ours.set(name, family);
	}
}
const { routerRemoteIndexerQueryFailuresTotal, routerRemoteIndexerWriteFailuresTotal } = METRICS.component;
/** Groups in which there are families of our own, and Dynamo's that no recorded process had a reason to show. */
const OWN: readonly MetricFamily[] = [
	...[METRICS.event, METRICS.engine, METRICS.kvTransfer, METRICS.vllm, METRICS.nim].flatMap((group) =>
		Object.values<MetricFamily>(group),
	),
	routerRemoteIndexerQueryFailuresTotal,
	routerRemoteIndexerWriteFailuresTotal,
	METRICS.frontend.routerCacheWaitsTotal,
];

describe("the catalogue of metrics", () => {
	it("has Dynamo's families but for those of its Rust runtime, and in some groups others", () => {
		expect(recorded.length).toBe(142);
		const names = recorded.map(({ name }) => name);
		expect([...ours.keys()]).toEqual(expect.arrayContaining(names));
		const others = [...ours].filter(([name]) => !names.includes(name));
		expect(others.filter(([, family]) => !OWN.includes(family))).toEqual([]);
	});

	it.each([...ours])("%s says what it is", (name, { type, help, labels, buckets = [] }) => {
		expect(help).toMatch(/^[A-Z0-9]/);
		expect(new Set(labels).size).toBe(labels.length);
		expect(buckets.length > 0).toBe(type === "histogram");
		expect([...buckets]).toEqual([...new Set(buckets)].sort((a, b) => a - b));
		expect(name).toMatch(/^[a-z_:0-9]+$/);
	});

	it.each(recorded)("$name is as on Dynamo's page", ({ name, type, labels, buckets }) => {
		const family = ours.get(name);
		expect(family?.type).toBe(type);
		expect([...(family?.labels ?? [])].sort()).toEqual([...labels].sort());
		expect(family?.buckets ?? []).toEqual(buckets.map(Number));
	});
});

describe("computed buckets", () => {
	it("follow the rule", () => {
		expect(computedBuckets({ min: 0.01, max: 10, count: 4 })).toEqual([0, 0.1, 1, 10]);
		expect(computedBuckets(BUCKET_RANGES.requestDurationSeconds)).toEqual([0, 2, 4, 8, 16, 32, 64, 130, 260, 510]);
		expect(computedBuckets({ min: 1, max: 1.2, count: 20 })).toEqual([0, 1, 1.1, 1.2]);
	});

	it.each([
		[0, 1, 5],
		[1, 1, 5],
		[2, 1, 5],
		[1, 2, 1],
		[1, 2, 2.5],
		[Number.NaN, 2, 3],
		[1, Number.POSITIVE_INFINITY, 3],
	])("refuse min %d, max %d, count %d", (min, max, count) => {
		expect(() => computedBuckets({ min, max, count })).toThrow(RangeError);
	});
});
