// SPDX-License-Identifier: Apache-2.0
// Request and answers of a worker's endpoint `worker_kv_query_source_*`, where routers ask for KV events that they
// missed, or for all blocks that a worker holds. Recorded from Dynamo 1.6.1.

import { FieldReader } from "../field-reader.js";
import { isJsonObject, isU64, normaliseId } from "../json.js";
import { idHex } from "../keys.js";
import { type RouterEvent, routerEventFromWire, routerEventToWire } from "./router-event.js";

/** Topic of a worker's cache events. */
export const KV_EVENTS_TOPIC = "kv-events";

/** Name of the endpoint at which the events of a publisher can be asked for again. */
export function workerKvQueryEndpoint(publisherId: bigint): string {
	return `worker_kv_query_source_${idHex(publisherId)}`;
}

export interface WorkerKvQuery {
	readonly workerId: bigint;
	readonly dpRank: number;
	/** First event wanted; undefined: a dump of all blocks. */
	readonly startEventId: bigint | undefined;
	/** Last event wanted; undefined: up to the newest. */
	readonly endEventId: bigint | undefined;
	/** The caller understands the answer "TreeDumpFailed". */
	readonly supportsTreeDumpFailed: boolean;
}

export type WorkerKvAnswer =
	/** The events asked for, ids as they were and without a gap. */
	| { readonly type: "events"; readonly events: readonly RouterEvent[]; readonly lastEventId: bigint }
	/** Events that, applied to nothing, give all blocks; replaces what was known. */
	| { readonly type: "dump"; readonly events: readonly RouterEvent[]; readonly lastEventId: bigint }
	/** Nothing that new has happened. */
	| { readonly type: "too_new"; readonly newestAvailable: bigint }
	| { readonly type: "invalid_range"; readonly startId: bigint; readonly endId: bigint }
	| { readonly type: "dump_failed" }
	| { readonly type: "error"; readonly message: string };

/** The request body. */
export function workerKvQueryToWire(query: WorkerKvQuery): Record<string, unknown> {
	return {
		worker_id: query.workerId,
		dp_rank: query.dpRank,
		start_event_id: query.startEventId ?? null,
		end_event_id: query.endEventId ?? null,
		supports_tree_dump_failed: query.supportsTreeDumpFailed,
		kind: "recovery",
	};
}

/** @throws DynamoError InvalidArgument that names the member at fault. */
export function workerKvQueryFromWire(value: unknown): WorkerKvQuery {
	const body = new FieldReader(value, "worker KV query");
	const kind = body.optionalString("kind") ?? "recovery";
	if (kind !== "recovery") body.fail(`kind ${JSON.stringify(kind)} is not known, only recovery`);
	return {
		workerId: body.u64("worker_id"),
		dpRank: body.optionalU32("dp_rank") ?? 0,
		startEventId: body.has("start_event_id") ? body.u64("start_event_id") : undefined,
		endEventId: body.has("end_event_id") ? body.u64("end_event_id") : undefined,
		supportsTreeDumpFailed: body.has("supports_tree_dump_failed") && body.boolean("supports_tree_dump_failed"),
	};
}

/** The response item's `data`. `asked` is told back in answers that name what was asked for. */
export function workerKvAnswerToWire(answer: WorkerKvAnswer, asked: WorkerKvQuery): unknown {
	switch (answer.type) {
		case "events":
			return { Events: { events: answer.events.map(routerEventToWire), last_event_id: answer.lastEventId } };
		case "dump":
			return {
				TreeDump: {
					events: answer.events.map(routerEventToWire),
					last_event_id: answer.lastEventId,
					reset_scope: "all",
				},
			};
		case "too_new":
			return {
				TooNew: {
					requested_start: asked.startEventId ?? null,
					requested_end: asked.endEventId ?? null,
					newest_available: answer.newestAvailable,
				},
			};
		case "invalid_range":
			return { InvalidRange: { start_id: answer.startId, end_id: answer.endId } };
		case "dump_failed":
			return "TreeDumpFailed";
		case "error":
			return { Error: answer.message };
	}
}

function readEvents(body: FieldReader): { events: RouterEvent[]; lastEventId: bigint } {
	const events = body.member("events");
	if (!Array.isArray(events)) return body.fail("events must be an array");
	return { events: events.map(routerEventFromWire), lastEventId: body.u64("last_event_id") };
}

/** @throws DynamoError InvalidArgument for an answer of no known kind. */
export function workerKvAnswerFromWire(value: unknown): WorkerKvAnswer {
	if (value === "TreeDumpFailed") return { type: "dump_failed" };
	const answer = new FieldReader(value, "worker KV answer");
	const kinds = Object.keys(answer.value);
	const kind = kinds.length === 1 ? kinds[0] : undefined;
	switch (kind) {
		case "Events":
			return { type: "events", ...readEvents(answer.object(kind)) };
		case "TreeDump":
			return { type: "dump", ...readEvents(answer.object(kind)) };
		case "TooNew": {
			const newest = isJsonObject(answer.value[kind])
				? (answer.value[kind] as Record<string, unknown>).newest_available
				: 0;
			return { type: "too_new", newestAvailable: isU64(newest) ? normaliseId(newest) : 0n };
		}
		case "InvalidRange": {
			const range = answer.object(kind);
			return { type: "invalid_range", startId: range.u64("start_id"), endId: range.u64("end_id") };
		}
		case "TreeDumpFailed":
			return { type: "dump_failed" };
		case "Error":
			return { type: "error", message: answer.string(kind) };
		default:
			return answer.fail(`must have exactly one member that is known, has ${JSON.stringify(kinds)}`);
	}
}
