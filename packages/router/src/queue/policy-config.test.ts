// SPDX-License-Identifier: Apache-2.0
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { RouterPolicyConfig } from "./policy-config.js";
import { isPoolBusy, isPrefillBusy, type PolicyClass, PolicyProfile } from "./policy-profile.js";

const FILE = `
default_policy_family: standard
uncached_isl_buckets:
  - min_tokens: 0
    bucket: short
  - min_tokens: 1000
    bucket: long
policy_classes:
  - name: standard-short
    policy_family: standard
    cache_bucket: short
    quantum: 4096
    prefill_busy_threshold_frac: 1.5
  - name: standard-long
    policy_family: standard
    cache_bucket: long
    queue_policy: wspt
    quantum: 1024
    prefill_busy_threshold: 8000
    busy_worker_ratio: 0.5
    request_queue_limit_per_worker: 3
    raw_isl_token_queue_limit_per_worker: 90000
    cached_token_queue_limit_per_worker: 0
  - name: batch
    quantum: 64
models:
  small:
    default_policy_family: only
    uncached_isl_buckets: [{ min_tokens: 0, bucket: all }]
    policy_classes: [{ name: one, policy_family: only, cache_bucket: all, quantum: 1 }]
worker_selection:
  aggregated: default
`;

describe("a policy file", () => {
	const config = RouterPolicyConfig.parse(FILE);
	const profile = config.profileOf("any") as PolicyProfile;
	const nameOf = (wanted: string | undefined, tokens: number): string | undefined =>
		profile.classes[profile.classOf(wanted, tokens)]?.name;

	it("sorts requests by class, family and uncached tokens", () => {
		expect(nameOf(undefined, 0)).toBe("standard-short");
		expect(nameOf(undefined, 999)).toBe("standard-short");
		expect(nameOf(undefined, 1000)).toBe("standard-long");
		expect(nameOf("standard", 5000)).toBe("standard-long");
		expect(nameOf("batch", 5000)).toBe("batch");
		// A class of a family cannot be named, and what is not known is as good as none.
		expect(nameOf("standard-long", 1)).toBe("standard-short");
		expect(nameOf("nobody", 1)).toBe("standard-short");
	});

	it("has the limits of each class, and other classes for some models", () => {
		expect(profile.classes[1]).toEqual({
			name: "standard-long",
			order: "wspt",
			quantum: 1024,
			prefillBusyThreshold: 8000,
			prefillBusyThresholdFrac: undefined,
			busyWorkerRatio: 0.5,
			requestLimit: 3,
			promptTokenLimit: 90000,
			cachedTokenLimit: 0,
		});
		expect(config.profileOf("small")?.classes.map(({ name }) => name)).toEqual(["one"]);
		expect(config.profileOf("small")?.queues).toBe(false);
		expect(profile.queues).toBe(true);
	});

	it("is read from a file; what cannot be read is named", () => {
		const folder = mkdtempSync(join(tmpdir(), "dynamo-policy-"));
		try {
			const path = join(folder, "policy.yaml");
			writeFileSync(path, FILE);
			expect(RouterPolicyConfig.fromFile(path).profileOf("x")?.classes).toHaveLength(3);
			expect(() => RouterPolicyConfig.fromFile(join(folder, "none.yaml"))).toThrow(/cannot be read.*none\.yaml/);
		} finally {
			rmSync(folder, { recursive: true });
		}
	});

	const one = (more: string): string =>
		`default_policy_family: f\nuncached_isl_buckets: [{min_tokens: 0, bucket: b}]\npolicy_classes:\n  - {name: c, policy_family: f, cache_bucket: b, quantum: 1, ${more}}\n`;

	it.each([
		["{", /no YAML/],
		["[]", /must be a mapping/],
		["{}", /must be policy_classes, models or worker_selection/],
		["default_policy_family: f", /go together; there is only default_policy_family/],
		[one("quantom: 1"), /policy_classes\[0\]: quantom is not known here/],
		[one("queue_policy: lcfs"), /queue_policy must be fcfs or wspt/],
		[one("quantum: 0"), /./],
		[one("busy_worker_ratio: 0.5"), /busy_worker_ratio means nothing without/],
		[one("prefill_busy_threshold: 1, busy_worker_ratio: 16"), /busy_worker_ratio must be above 0 and at most 1/],
		[one("prefill_busy_threshold: -1"), /prefill_busy_threshold must be a number from 0 on/],
		[one("request_queue_limit_per_worker: 1.5"), /must be a whole number/],
		[one("").replace("min_tokens: 0", "min_tokens: 5"), /must begin at min_tokens 0/],
		[one("").replace("cache_bucket: b", "cache_bucket: other"), /there is no bucket other/],
		[one("").replace("cache_bucket: b, ", ""), /policy_family and cache_bucket go together/],
		[one("").replace("default_policy_family: f", "default_policy_family: g"), /default_policy_family g has no classes/],
		[one("").replace("name: c", 'name: "a b"'), /may have only letters/],
		["worker_selection: {decode: mine, instances: [{name: mine, type: t}]}", /other policies cannot be loaded/],
		["worker_selection: {decode: mine}", /decode must be default/],
	])("refuses %s", (text, message) => {
		expect(() => RouterPolicyConfig.parse(text, "policy.yaml")).toThrow(message);
	});
});

it("a pool is busy when all of its workers are, or the share that the class says", () => {
	const policy: PolicyClass = { name: "c", order: "fcfs", quantum: 1, prefillBusyThresholdFrac: 0 };
	expect([isPoolBusy(policy, 127, 128), isPoolBusy(policy, 128, 128), isPoolBusy(policy, 0, 0)]).toEqual([
		false,
		true,
		false,
	]);
	const ratio = { ...policy, busyWorkerRatio: 0.95 };
	expect([isPoolBusy(ratio, 121, 128), isPoolBusy(ratio, 122, 128), isPoolBusy(ratio, 1, 2)]).toEqual([
		false,
		true,
		false,
	]);
	expect([isPrefillBusy(policy, 0, 100), isPrefillBusy(policy, 1, 100), isPrefillBusy(policy, 1, undefined)]).toEqual([
		false,
		true,
		false,
	]);
	expect(PolicyProfile.single("fcfs", undefined).queues).toBe(false);
});
