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
for (const group of ["frontend", "component"] as const) {
	for (const family of Object.values(METRICS[group])) ours.set(fullMetricName(group, family.name), family);
}

describe("the catalogue of metrics", () => {
	it("has Dynamo's families, no more and no fewer", () => {
		expect(recorded.length).toBe(108);
		expect([...ours.keys()].sort()).toEqual(recorded.map(({ name }) => name).sort());
	});

	it.each(recorded)("$name is as on Dynamo's page", ({ name, type, labels, buckets }) => {
		const family = ours.get(name);
		expect(family?.type).toBe(type);
		expect([...(family?.labels ?? [])].sort()).toEqual([...labels].sort());
		expect(family?.buckets ?? []).toEqual(buckets.map(Number));
		expect(family?.help).toMatch(/^[A-Z0-9]/);
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
