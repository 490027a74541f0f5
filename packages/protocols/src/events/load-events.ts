// SPDX-License-Identifier: Apache-2.0
// Payloads of the topics that tell how busy workers are: `kv_metrics`, `active_sequences_events`,
// `session_affinity_events`. Recorded from Dynamo 1.6.1.

import { FieldReader } from "../field-reader.js";
import { unpackMsgpack } from "../frames/msgpack-reader.js";
import { MsgpackWriter } from "../frames/msgpack-writer.js";
import { isJsonObject } from "../json.js";

export const KV_METRICS_TOPIC = "kv_metrics";
export const ACTIVE_SEQUENCES_TOPIC = "active_sequences_events";
export const SESSION_AFFINITY_TOPIC = "session_affinity_events";

const writer = new MsgpackWriter();

function pack(value: Record<string, unknown>): Buffer {
	writer.begin(0);
	writer.map(value);
	return writer.finish();
}

/** A worker and one of its data-parallel ranks. */
export interface WorkerRank {
	readonly workerId: bigint;
	readonly dpRank: number;
}

/** How full a worker is; what is undefined is not told. */
export interface WorkerLoad extends WorkerRank {
	/** Blocks of running requests, as a scheduler counts them. */
	readonly activeDecodeBlocks?: bigint | undefined;
	/** Prompt tokens that are still to be computed. */
	readonly activePrefillTokens?: bigint | undefined;
	/** Blocks of running requests, partly filled ones included. */
	readonly kvUsedBlocks?: bigint | undefined;
	readonly schedulerLoadScope?: "local" | "replica_synchronized" | undefined;
}

/** Payload of the topic `kv_metrics`. */
export function encodeWorkerLoad(load: WorkerLoad): Buffer {
	return pack({
		worker_id: load.workerId,
		dp_rank: load.dpRank,
		active_decode_blocks: load.activeDecodeBlocks ?? null,
		active_prefill_tokens: load.activePrefillTokens ?? null,
		kv_used_blocks: load.kvUsedBlocks ?? null,
		scheduler_load_scope: load.schedulerLoadScope,
	});
}

/** @throws DynamoError InvalidArgument for a member at fault, Error for bytes that are no msgpack. */
export function decodeWorkerLoad(payload: Buffer): WorkerLoad {
	const body = new FieldReader(unpackMsgpack(payload), "kv_metrics");
	const count = (name: string): bigint | undefined => (body.has(name) ? body.u64(name) : undefined);
	return {
		workerId: body.u64("worker_id"),
		dpRank: body.optionalU32("dp_rank") ?? 0,
		activeDecodeBlocks: count("active_decode_blocks"),
		activePrefillTokens: count("active_prefill_tokens"),
		kvUsedBlocks: count("kv_used_blocks"),
		schedulerLoadScope: body.optionalWord("scheduler_load_scope", ["local", "replica_synchronized"]),
	};
}

export type ActiveSequenceChange =
	| {
			readonly type: "add";
			/** Sequence hashes of the prompt's full blocks; undefined where none are tracked. */
			readonly tokenSequence: readonly bigint[] | undefined;
			readonly trackPrefillTokens: boolean;
			readonly expectedOutputTokens?: bigint | undefined;
			readonly prefillLoadHint?:
				| {
						readonly initialEffectivePrefillTokens: bigint;
						/** As it was read: how peers write a duration here was never seen. */
						readonly expectedPrefillDuration?: unknown;
				  }
				| undefined;
	  }
	| { readonly type: "prefill_completed" }
	| { readonly type: "free" };

/** A change of the requests that run on a worker. */
export interface ActiveSequenceEvent {
	readonly requestId: string;
	readonly worker: WorkerRank;
	readonly change: ActiveSequenceChange;
	/** Who tells it: a router, or the worker itself (then its worker id). */
	readonly routerId: bigint;
	readonly loraName?: string | undefined;
}

function changeToWire(change: ActiveSequenceChange): unknown {
	switch (change.type) {
		case "prefill_completed":
			return "MarkPrefillCompleted";
		case "free":
			return "Free";
		case "add": {
			const hint = change.prefillLoadHint;
			return {
				AddRequest: {
					token_sequence: change.tokenSequence ?? null,
					track_prefill_tokens: change.trackPrefillTokens,
					expected_output_tokens: change.expectedOutputTokens ?? null,
					prefill_load_hint:
						hint === undefined
							? null
							: {
									initial_effective_prefill_tokens: hint.initialEffectivePrefillTokens,
									expected_prefill_duration: hint.expectedPrefillDuration ?? null,
								},
				},
			};
		}
	}
}

function activeToWire(event: ActiveSequenceEvent): Record<string, unknown> {
	return {
		request_id: event.requestId,
		worker: { worker_id: event.worker.workerId, dp_rank: event.worker.dpRank },
		data: changeToWire(event.change),
		router_id: event.routerId,
		lora_name: event.loraName ?? null,
	};
}

/** Payloads of the topic `active_sequences_events`: one batch for ZeroMQ, one bare event each for NATS. */
export function encodeActiveSequences(events: readonly ActiveSequenceEvent[], form: "batch" | "bare"): Buffer[] {
	if (form === "batch") return [pack({ events: events.map(activeToWire) })];
	return events.map((event) => pack(activeToWire(event)));
}

function readChange(event: FieldReader): ActiveSequenceChange {
	const data = event.member("data");
	if (data === "MarkPrefillCompleted") return { type: "prefill_completed" };
	if (data === "Free") return { type: "free" };
	if (!isJsonObject(data) || !("AddRequest" in data))
		return event.fail("data knows MarkPrefillCompleted, Free and AddRequest");
	const body = event.object("data").object("AddRequest");
	const list = body.value.token_sequence;
	const hint = body.has("prefill_load_hint") ? body.object("prefill_load_hint") : undefined;
	return {
		type: "add",
		tokenSequence: Array.isArray(list)
			? list.map((_, i) => new FieldReader({ hash: list[i] }, "active sequence event: token_sequence").u64("hash"))
			: undefined,
		trackPrefillTokens: body.has("track_prefill_tokens") ? body.boolean("track_prefill_tokens") : true,
		expectedOutputTokens: body.has("expected_output_tokens") ? body.u64("expected_output_tokens") : undefined,
		prefillLoadHint:
			hint === undefined
				? undefined
				: {
						initialEffectivePrefillTokens: hint.u64("initial_effective_prefill_tokens"),
						expectedPrefillDuration: hint.value.expected_prefill_duration ?? undefined,
					},
	};
}

function activeFromWire(value: unknown): ActiveSequenceEvent {
	const event = new FieldReader(value, "active sequence event");
	const worker = event.object("worker");
	return {
		requestId: event.string("request_id"),
		worker: { workerId: worker.u64("worker_id"), dpRank: worker.optionalU32("dp_rank") ?? 0 },
		change: readChange(event),
		routerId: event.u64("router_id"),
		loraName: event.optionalString("lora_name"),
	};
}

/**
 * Reads a payload of either form.
 * @throws DynamoError InvalidArgument for a member at fault, Error for bytes that are no msgpack.
 */
export function decodeActiveSequences(payload: Buffer): ActiveSequenceEvent[] {
	const value = unpackMsgpack(payload);
	if (isJsonObject(value) && Array.isArray(value.events)) return value.events.map(activeFromWire);
	return [activeFromWire(value)];
}

/** A session is bound to a worker. */
export interface SessionAffinityEvent extends WorkerRank {
	readonly sessionId: string;
	/** Orders the bindings of a session; stays the same while the binding does. */
	readonly sequence: bigint;
	/** The frontend that bound it. */
	readonly writerId: bigint;
}

/** Payload of the topic `session_affinity_events`. */
export function encodeSessionAffinity(event: SessionAffinityEvent): Buffer {
	return pack({
		session_id: event.sessionId,
		worker_id: event.workerId,
		dp_rank: event.dpRank,
		sequence: event.sequence,
		writer_id: event.writerId,
	});
}

/** @throws DynamoError InvalidArgument for a member at fault, Error for bytes that are no msgpack. */
export function decodeSessionAffinity(payload: Buffer): SessionAffinityEvent {
	const body = new FieldReader(unpackMsgpack(payload), "session affinity event");
	return {
		sessionId: body.string("session_id"),
		workerId: body.u64("worker_id"),
		dpRank: body.optionalU32("dp_rank") ?? 0,
		sequence: body.u64("sequence"),
		writerId: body.u64("writer_id"),
	};
}
