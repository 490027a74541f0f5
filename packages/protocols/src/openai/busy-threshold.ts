// SPDX-License-Identifier: Apache-2.0
// The body of POST /busy_threshold, as Dynamo 1.6.1 reads it.
import { type BodyType, parseBody } from "./parse-body.js";
import { type Check, f64, option, string, u64 } from "./serde-check.js";

/** Limits above which a model's workers get no more requests; null or absent: leave it as it is. */
export interface BusyThresholdRequest {
	model: string;
	/** Share of a worker's blocks, 0 to 1. */
	active_decode_blocks_threshold?: number | null;
	/** Tokens. */
	active_prefill_tokens_threshold?: number | bigint | null;
	/** A multiple of the workers' `max_num_batched_tokens`. */
	active_prefill_tokens_threshold_frac?: number | null;
}

const direct = (check: Check) => ({ group: "direct", check }) as const;

const BUSY_THRESHOLD: BodyType = {
	name: "BusyThresholdRequest",
	fields: new Map([
		["model", direct(string)],
		["active_decode_blocks_threshold", direct(option(f64))],
		["active_prefill_tokens_threshold", direct(option(u64))],
		["active_prefill_tokens_threshold_frac", direct(option(f64))],
	]),
	required: ["model"],
};

/** @throws HttpError 400 with serde's words for what is no such body. Unknown members are ignored. */
export function parseBusyThresholdRequest(body: string | Uint8Array): BusyThresholdRequest {
	return parseBody(body, BUSY_THRESHOLD).fields as unknown as BusyThresholdRequest;
}
