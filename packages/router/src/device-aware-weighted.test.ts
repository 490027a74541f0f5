// SPDX-License-Identifier: Apache-2.0
import type { EndpointRecord } from "@dynamo-ts/protocols/internal";
import { expect, test } from "vitest";
import { DeviceAwareWeightedPolicy, deviceRatio } from "./device-aware-weighted.js";
import { workerRecord } from "./test-support/worker-record.js";

const worker = (id: bigint, device_type?: "cpu" | "cuda"): EndpointRecord =>
	workerRecord(id, device_type === undefined ? {} : { device_type });

function share(policy: DeviceAwareWeightedPolicy, workers: EndpointRecord[], requests: number): Map<bigint, number> {
	for (let i = 0; i < requests; i++) {
		const picked = policy.pick(workers) as EndpointRecord;
		policy.onStart(picked.instance_id, String(i));
	}
	return new Map(workers.map(({ instance_id }) => [instance_id, policy.active.count(instance_id)]));
}

test("each group gets requests in proportion to its workers and their weight, equally within it", () => {
	const workers = [worker(1n, "cpu"), worker(2n, "cpu"), worker(3n, "cuda"), worker(4n)];
	const counts = share(new DeviceAwareWeightedPolicy(4), workers, 100);
	expect([...counts.values()]).toEqual([10, 10, 40, 40]);
});

test("with one kind of workers it is the least loaded", () => {
	const policy = new DeviceAwareWeightedPolicy(8);
	const workers = [worker(1n, "cpu"), worker(2n, "cpu"), worker(3n, "cpu")];
	expect([...share(policy, workers, 9).values()]).toEqual([3, 3, 3]);
	policy.onEnd(2n, "1");
	policy.onEnd(1n, "1");
	policy.onEnd(3n, "1");
	expect([1n, 2n, 3n].map((id) => policy.active.count(id)).sort()).toEqual([2, 3, 3]);
	expect(policy.pick([])).toBeUndefined();
});

test("the ratio of the environment", () => {
	expect(deviceRatio({})).toBe(8);
	expect(deviceRatio({ DYN_ENCODER_CUDA_TO_CPU_RATIO: "2.5" })).toBe(2.5);
	expect(() => deviceRatio({ DYN_ENCODER_CUDA_TO_CPU_RATIO: "0" })).toThrow(/DYN_ENCODER_CUDA_TO_CPU_RATIO.*above 0/);
});
