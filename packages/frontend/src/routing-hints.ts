// SPDX-License-Identifier: Apache-2.0
import type { IncomingHttpHeaders } from "node:http";
import {
	type ChatCompletionRequest,
	type CompletionRequest,
	normaliseId,
	type RoutingHints,
} from "@dynamo-ts/protocols/internal";

/** What request headers say about the way; they win over `nvext`. */
export interface RoutingHeaders {
	readonly workerId?: bigint;
	readonly dpRank?: number;
	readonly prefillWorkerId?: bigint;
	readonly prefillDpRank?: number;
	/** Who goes first where requests wait. */
	readonly priority?: number;
	readonly strictPriority?: number;
	/** Class of the router's policy file that the request wants to be in. */
	readonly policyClass?: string;
	readonly sessionId?: string;
}

const MAX_U64 = 0xffff_ffff_ffff_ffffn;
const MAX_U32 = 0xffff_ffff;

/** Reads the routing headers; as in Dynamo, one that is no number is as good as none. */
export function routingHeaders(headers: IncomingHttpHeaders): RoutingHeaders {
	const first = <T>(
		read: (text: string | string[] | undefined) => T | undefined,
		...names: string[]
	): T | undefined => {
		for (const name of names) {
			const value = read(headers[name]);
			if (value !== undefined) return value;
		}
		return undefined;
	};
	const all: { -readonly [K in keyof RoutingHeaders]: RoutingHeaders[K] | undefined } = {
		workerId: first(readId, "x-dynamo-worker-instance-id", "x-worker-instance-id"),
		dpRank: first(readRank, "x-dynamo-dp-rank", "x-dp-rank", "x-data-parallel-rank"),
		prefillWorkerId: first(readId, "x-dynamo-prefill-instance-id", "x-prefill-instance-id"),
		prefillDpRank: first(readRank, "x-dynamo-prefill-dp-rank", "x-prefill-dp-rank"),
		priority: readPriority(headers["x-dynamo-request-priority"]),
		strictPriority: readRank(headers["x-dynamo-request-strict-priority"]),
		policyClass: readWord(headers["x-dynamo-meta-policy-class"]),
		sessionId: readWord(headers["x-dynamo-session-id"]),
	};
	return Object.fromEntries(Object.entries(all).filter(([, value]) => value !== undefined)) as RoutingHeaders;
}

/** A whole number of 32 bits, with or without a sign. */
function readPriority(text: string | string[] | undefined): number | undefined {
	if (typeof text !== "string" || !/^[+-]?\d{1,10}$/.test(text)) return undefined;
	const priority = Number(text);
	return Math.abs(priority) <= 0x7fff_ffff ? priority : undefined;
}

function readWord(text: string | string[] | undefined): string | undefined {
	return typeof text === "string" && text !== "" ? text : undefined;
}

function readId(text: string | string[] | undefined): bigint | undefined {
	if (typeof text !== "string" || !/^\d{1,20}$/.test(text)) return undefined;
	const id = BigInt(text);
	return id <= MAX_U64 ? id : undefined;
}

function readRank(text: string | string[] | undefined): number | undefined {
	if (typeof text !== "string" || !/^\d{1,10}$/.test(text)) return undefined;
	const rank = Number(text);
	return rank <= MAX_U32 ? rank : undefined;
}

/** Members in the order that Dynamo writes them; absent when unset. */
export function routingHints(
	request: ChatCompletionRequest | CompletionRequest,
	headers: RoutingHeaders,
	loraName: string | undefined,
): RoutingHints {
	const { nvext } = request;
	const hints: RoutingHints = {};
	const agent = nvext?.agent_hints ?? undefined;
	const put = <K extends keyof RoutingHints>(key: K, value: RoutingHints[K] | null | undefined): void => {
		if (value !== null && value !== undefined) hints[key] = value;
	};
	const priority = headers.priority ?? agent?.priority ?? undefined;
	put("backend_instance_id", headers.workerId ?? idOf(nvext?.backend_instance_id));
	put("prefill_worker_id", headers.prefillWorkerId ?? idOf(nvext?.prefill_worker_id));
	put("decode_worker_id", headers.workerId ?? idOf(nvext?.decode_worker_id));
	put("dp_rank", headers.dpRank ?? nvext?.dp_rank);
	put("prefill_dp_rank", headers.prefillDpRank ?? nvext?.prefill_dp_rank);
	put("expected_output_tokens", agent?.osl);
	put("lora_name", loraName);
	put("cache_salt", (nvext?.cache_salt ?? request.cache_salt) || undefined);
	// A jump is forward only.
	put("priority_jump", priority === undefined ? agent?.latency_sensitivity : Math.max(0, priority));
	put("strict_priority", headers.strictPriority ?? agent?.strict_priority);
	put("priority", priority);
	put("routing_constraints", nvext?.routing_constraints);
	return hints;
}

function idOf(id: number | bigint | null | undefined): bigint | undefined {
	return id === null || id === undefined ? undefined : normaliseId(id);
}
