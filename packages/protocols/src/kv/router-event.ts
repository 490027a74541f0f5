// SPDX-License-Identifier: Apache-2.0
// RouterEvent: one change of a worker's prefix cache as routers see it. Layout recorded from Dynamo 1.6.1 (topic
// `kv-events`, and the answers of `worker_kv_query_source_*`).

import { FieldReader } from "../field-reader.js";
import { unpackMsgpack } from "../frames/msgpack-reader.js";
import { MsgpackWriter } from "../frames/msgpack-writer.js";
import { isJsonObject, isU64, normaliseId } from "../json.js";

/** Where a block lies. */
export const STORAGE_TIERS = ["device", "host_pinned", "disk", "external"] as const;
export type StorageTier = (typeof STORAGE_TIERS)[number];

/** Whose state an event describes: the worker's own, or that of a cache that outlives it. */
export const RESIDENCY_DOMAINS = ["worker", "cache_owner"] as const;
export type ResidencyDomain = (typeof RESIDENCY_DOMAINS)[number];

/** An image or the like within a block: its hash, and the token ranges it fills. */
export interface MmObject {
	readonly mmHash: bigint;
	readonly offsets: readonly (readonly [start: number, end: number])[];
}

/** A block as routers know it. */
export interface RouterBlock {
	/** The engine's name for the block in its place; opaque. */
	readonly blockHash: bigint;
	/** Dynamo's hash of the block's tokens alone, see `tokensHash`. */
	readonly tokensHash: bigint;
	readonly mmObjects?: readonly MmObject[] | undefined;
}

export type RouterEventData =
	/** Blocks follow each other behind `parentHash` (a block hash; undefined: they begin a prompt). */
	| {
			readonly type: "stored";
			readonly parentHash: bigint | undefined;
			readonly startPosition?: bigint | undefined;
			readonly blocks: readonly RouterBlock[];
	  }
	| { readonly type: "removed"; readonly blockHashes: readonly bigint[] }
	| { readonly type: "cleared" };

export interface RouterEvent {
	readonly workerId: bigint;
	/** Data-parallel rank within the worker. */
	readonly dpRank: number;
	/** Rises by one per event of a publisher, from 1. Not the envelope's sequence. */
	readonly eventId: bigint;
	readonly storageTier: StorageTier;
	/** Undefined in events of older peers: the worker's, and a clear then means every domain. */
	readonly residencyDomain: ResidencyDomain | undefined;
	readonly data: RouterEventData;
}

function blockToWire(block: RouterBlock): Record<string, unknown> {
	return {
		block_hash: block.blockHash,
		tokens_hash: block.tokensHash,
		mm_extra_info:
			block.mmObjects === undefined
				? null
				: { mm_objects: block.mmObjects.map(({ mmHash, offsets }) => ({ mm_hash: mmHash, offsets })) },
	};
}

function dataToWire(data: RouterEventData): unknown {
	switch (data.type) {
		case "stored":
			return {
				stored: {
					parent_hash: data.parentHash ?? null,
					start_position: data.startPosition ?? null,
					blocks: data.blocks.map(blockToWire),
				},
			};
		case "removed":
			return { removed: { block_hashes: data.blockHashes } };
		case "cleared":
			return "cleared";
	}
}

/** The event as the value that goes into a msgpack or JSON body. */
export function routerEventToWire(event: RouterEvent): Record<string, unknown> {
	return {
		worker_id: event.workerId,
		storage_tier: event.storageTier,
		residency_domain: event.residencyDomain,
		event: { event_id: event.eventId, data: dataToWire(event.data), dp_rank: event.dpRank },
	};
}

function hash(value: unknown, reader: FieldReader, name: string): bigint {
	return isU64(value) ? normaliseId(value) : reader.fail(`${name} must be an unsigned 64-bit integer`);
}

function hashes(value: unknown, reader: FieldReader, name: string): bigint[] {
	if (!Array.isArray(value)) return reader.fail(`${name} must be an array`);
	return value.map((item) => hash(item, reader, name));
}

/** The token ranges of an `MmObject`. @throws DynamoError InvalidArgument for anything but pairs of integers. */
export function readOffsets(value: unknown, reader: FieldReader): MmObject["offsets"] {
	if (!Array.isArray(value)) return reader.fail("offsets must be an array");
	return value.map((pair: unknown): [number, number] => {
		const [start, end] = Array.isArray(pair) && pair.length === 2 ? pair : reader.fail("offsets must be pairs");
		if (!Number.isSafeInteger(start) || !Number.isSafeInteger(end)) reader.fail("offsets must be integers");
		return [start, end];
	});
}

function readMmObjects(info: unknown, reader: FieldReader): MmObject[] | undefined {
	if (info === undefined || info === null) return undefined;
	const objects = isJsonObject(info) ? info.mm_objects : undefined;
	if (!Array.isArray(objects)) return reader.fail("mm_extra_info needs an array mm_objects");
	return objects.map((object: unknown) => {
		const { mm_hash: mmHash, offsets } = isJsonObject(object) ? object : reader.fail("an mm_object must be an object");
		return { mmHash: hash(mmHash, reader, "mm_hash"), offsets: readOffsets(offsets, reader) };
	});
}

function readBlock(value: unknown, reader: FieldReader): RouterBlock {
	if (!isJsonObject(value)) return reader.fail("a block must be an object");
	const block = {
		blockHash: hash(value.block_hash, reader, "block_hash"),
		tokensHash: hash(value.tokens_hash, reader, "tokens_hash"),
	};
	const mmObjects = readMmObjects(value.mm_extra_info, reader);
	return mmObjects === undefined ? block : { ...block, mmObjects };
}

function readData(event: FieldReader): RouterEventData {
	const data = event.member("data");
	if (data === "cleared") return { type: "cleared" };
	const kinds = isJsonObject(data) ? Object.keys(data) : [];
	if (kinds.length !== 1) return event.fail('data must be "cleared" or have exactly one member: stored or removed');
	const kind = kinds[0] as string;
	const body = event.object("data").object(kind);
	if (kind === "removed")
		return { type: "removed", blockHashes: hashes(body.member("block_hashes"), body, "block_hashes") };
	if (kind !== "stored") return event.fail(`data knows stored, removed and cleared, not ${JSON.stringify(kind)}`);
	const blocks = body.member("blocks");
	if (!Array.isArray(blocks)) return body.fail("blocks must be an array");
	const stored = {
		type: "stored" as const,
		parentHash: body.has("parent_hash") ? body.u64("parent_hash") : undefined,
		blocks: blocks.map((block) => readBlock(block, body)),
	};
	return body.has("start_position") ? { ...stored, startPosition: body.u64("start_position") } : stored;
}

/**
 * Reads one event out of a decoded body. Members that are not known are ignored.
 * @throws DynamoError InvalidArgument that names the member at fault.
 */
export function routerEventFromWire(value: unknown): RouterEvent {
	const outer = new FieldReader(value, "router event");
	const event = outer.object("event");
	return {
		workerId: outer.u64("worker_id"),
		dpRank: event.optionalU32("dp_rank") ?? 0,
		eventId: event.u64("event_id"),
		storageTier: outer.optionalWord("storage_tier", STORAGE_TIERS) ?? "device",
		// Absent is an older peer; null is nothing that a peer writes.
		residencyDomain:
			outer.value.residency_domain === undefined ? undefined : outer.word("residency_domain", RESIDENCY_DOMAINS),
		data: readData(event),
	};
}

const writer = new MsgpackWriter();

/** Payload of the topic `kv-events`: an array of events. */
export function encodeRouterEvents(events: readonly RouterEvent[]): Buffer {
	writer.begin(0);
	writer.value(events.map(routerEventToWire));
	return writer.finish();
}

/**
 * Reads a payload of the topic `kv-events`; older peers send one event without the array.
 * @throws DynamoError InvalidArgument for an event at fault, Error for bytes that are no msgpack.
 */
export function decodeRouterEvents(payload: Buffer): RouterEvent[] {
	const value = unpackMsgpack(payload);
	return Array.isArray(value) ? value.map(routerEventFromWire) : [routerEventFromWire(value)];
}
