// SPDX-License-Identifier: Apache-2.0
import { DynamoError, ENV, type EndpointRecord } from "@dynamo-ts/protocols/internal";
import { ActiveRequests } from "./active-requests.js";
import { leastLoaded } from "./least-loaded.js";
import type { Router } from "./router.js";

/** How much more a worker with an accelerator takes than one without, unless the environment says otherwise. */
const DEFAULT_RATIO = 8;

/**
 * @returns `DYN_ENCODER_CUDA_TO_CPU_RATIO`, or 8.
 * @throws DynamoError `InvalidArgument` for a value that is no positive number.
 */
export function deviceRatio(env: Readonly<Record<string, string | undefined>> = process.env): number {
	const text = env[ENV.DYN_ENCODER_CUDA_TO_CPU_RATIO];
	if (text === undefined || text === "") return DEFAULT_RATIO;
	const ratio = Number(text);
	if (Number.isFinite(ratio) && ratio > 0) return ratio;
	throw new DynamoError(
		"InvalidArgument",
		`${ENV.DYN_ENCODER_CUDA_TO_CPU_RATIO} is "${text}"; it must be a number above 0`,
	);
}

/**
 * The group of workers, with or without an accelerator, that has fewer requests for what it can do, and in it the
 * worker with the fewest. A group's load is its requests divided by its workers and their weight: 1 for a CPU, the
 * ratio for all others. With workers of one kind only it is the policy least-loaded.
 */
export class DeviceAwareWeightedPolicy implements Router {
	readonly name = "device-aware-weighted";
	readonly active = new ActiveRequests();
	private readonly ratio: number;
	private readonly random: () => number;

	constructor(ratio: number = deviceRatio(), random: () => number = Math.random) {
		this.ratio = ratio;
		this.random = random;
	}

	pick(candidates: readonly EndpointRecord[]): EndpointRecord | undefined {
		const cpus = candidates.filter(({ device_type }) => device_type === "cpu");
		const others = candidates.filter(({ device_type }) => device_type !== "cpu");
		const group = this.load(others, this.ratio) <= this.load(cpus, 1) ? others : cpus;
		return leastLoaded(group, this.active, this.random);
	}

	/** Infinite for a group of nobody. */
	private load(group: readonly EndpointRecord[], weight: number): number {
		if (group.length === 0) return Number.POSITIVE_INFINITY;
		const requests = group.reduce((sum, { instance_id }) => sum + this.active.count(instance_id), 0);
		return requests / (group.length * weight);
	}

	onStart(instanceId: bigint, requestId: string): void {
		this.active.add(instanceId, requestId);
	}

	onEnd(instanceId: bigint, requestId: string): void {
		this.active.remove(instanceId, requestId);
	}
}
