// SPDX-License-Identifier: Apache-2.0
// Payload of the topic `forward-pass-metrics`: what an engine's step held and what waits. Recorded from Dynamo 1.6.1;
// unlike in every other payload the worker id is text.

import { FieldReader } from "../field-reader.js";
import { unpackMsgpack } from "../frames/msgpack-reader.js";
import { MsgpackWriter } from "../frames/msgpack-writer.js";

export const FORWARD_PASS_TOPIC = "forward-pass-metrics";

/** Requests in prefill and in decode; lengths in tokens, `var` is the variance over the requests. */
export interface PassLoad {
	readonly numPrefillRequests: number;
	readonly sumPrefillTokens: number;
	readonly varPrefillLength: number;
	/** Prompt tokens found in the cache; undefined for requests that wait. */
	readonly sumPrefillKvTokens?: number | undefined;
	readonly numDecodeRequests: number;
	readonly sumDecodeKvTokens: number;
	readonly varDecodeKvTokens: number;
}

export interface ForwardPassMetrics {
	readonly workerId: bigint;
	readonly dpRank: number;
	/** Counts the messages of a worker, from 1. */
	readonly counterId: bigint;
	/** Time of the step, seconds; 0 for the message of an idle engine. */
	readonly wallTime: number;
	readonly scheduled: PassLoad;
	readonly queued: PassLoad;
}

const FLOAT_MEMBERS = new Set(["wall_time", "var_prefill_length", "var_decode_kv_tokens"]);
const writer = new MsgpackWriter();

/** Floats are 64 bits wide also where the value is whole. */
const member = (key: string, value: unknown): boolean => {
	if (FLOAT_MEMBERS.has(key)) writer.float64(value as number);
	else if (key === "scheduled_requests" || key === "queued_requests")
		writer.map(value as Record<string, unknown>, member);
	else return false;
	return true;
};

function loadToWire(load: PassLoad): Record<string, unknown> {
	return {
		num_prefill_requests: load.numPrefillRequests,
		sum_prefill_tokens: load.sumPrefillTokens,
		var_prefill_length: load.varPrefillLength,
		sum_prefill_kv_tokens: load.sumPrefillKvTokens,
		num_decode_requests: load.numDecodeRequests,
		sum_decode_kv_tokens: load.sumDecodeKvTokens,
		var_decode_kv_tokens: load.varDecodeKvTokens,
	};
}

export function encodeForwardPassMetrics(metrics: ForwardPassMetrics): Buffer {
	writer.begin(0);
	writer.map(
		{
			version: 1,
			worker_id: String(metrics.workerId),
			dp_rank: metrics.dpRank,
			counter_id: metrics.counterId,
			wall_time: metrics.wallTime,
			scheduled_requests: loadToWire({
				...metrics.scheduled,
				sumPrefillKvTokens: metrics.scheduled.sumPrefillKvTokens ?? 0,
			}),
			queued_requests: loadToWire({ ...metrics.queued, sumPrefillKvTokens: undefined }),
		},
		member,
	);
	return writer.finish();
}

function readLoad(load: FieldReader): PassLoad {
	const number = (name: string): number => {
		const value = load.value[name] ?? 0;
		return typeof value === "number" ? value : load.fail(`${name} must be a number`);
	};
	return {
		numPrefillRequests: number("num_prefill_requests"),
		sumPrefillTokens: number("sum_prefill_tokens"),
		varPrefillLength: number("var_prefill_length"),
		sumPrefillKvTokens: load.has("sum_prefill_kv_tokens") ? number("sum_prefill_kv_tokens") : undefined,
		numDecodeRequests: number("num_decode_requests"),
		sumDecodeKvTokens: number("sum_decode_kv_tokens"),
		varDecodeKvTokens: number("var_decode_kv_tokens"),
	};
}

/** @throws DynamoError InvalidArgument for a member at fault, Error for bytes that are no msgpack. */
export function decodeForwardPassMetrics(payload: Buffer): ForwardPassMetrics {
	const body = new FieldReader(unpackMsgpack(payload), "forward pass metrics");
	const id = body.member("worker_id");
	const wallTime = body.member("wall_time");
	return {
		workerId: typeof id === "string" && /^\d{1,20}$/.test(id) ? BigInt.asUintN(64, BigInt(id)) : body.u64("worker_id"),
		dpRank: body.optionalU32("dp_rank") ?? 0,
		counterId: body.u64("counter_id"),
		wallTime: typeof wallTime === "number" ? wallTime : body.fail("wall_time must be a number"),
		scheduled: readLoad(body.object("scheduled_requests")),
		queued: readLoad(body.object("queued_requests")),
	};
}
