// SPDX-License-Identifier: Apache-2.0
// KV events as vLLM, SGLang and Dynamo's mocker send them over ZeroMQ: three frames (topic, u64 sequence from 0, msgpack
// batch). Events come as maps with a `type`, or as arrays with the type first. The map form was recorded from the mocker
// of Dynamo 1.6.1; the array form is that of vLLM's msgspec structures.

import { FieldReader, isU32 } from "../field-reader.js";
import { unpackMsgpack } from "../frames/msgpack-reader.js";
import { MsgpackWriter } from "../frames/msgpack-writer.js";
import { isJsonObject } from "../json.js";
import type { KvCacheEvent } from "./cache-event.js";
import { type MmObject, readOffsets, type StorageTier } from "./router-event.js";

interface VllmPlace {
	readonly tier: StorageTier;
	/** The block lies on another machine: nothing that this worker could serve from. */
	readonly remote: boolean;
	/** Blocks of attention that only sees a window (or of no attention) say nothing about a prefix. */
	readonly secondary: boolean;
}

export interface VllmStored extends VllmPlace {
	readonly type: "stored";
	readonly blockHashes: readonly bigint[];
	readonly parentHash: bigint | undefined;
	readonly tokenIds: readonly number[];
	/** Tokens come in overlapping pairs (speculation by a draft head): a block's window is one token longer. */
	readonly pairs: boolean;
	readonly blockSize: number;
	readonly loraName: string | undefined;
	readonly cacheSalt: string | undefined;
	/** Per block; undefined where there is nothing. Offsets are empty where they are not told. */
	readonly mmObjects: readonly (readonly MmObject[] | undefined)[] | undefined;
}
export interface VllmRemoved extends VllmPlace {
	readonly type: "removed";
	readonly blockHashes: readonly bigint[];
}
export type VllmEvent = VllmStored | VllmRemoved | { readonly type: "cleared" };

export interface VllmEventBatch {
	/** Seconds since 1970. */
	readonly timestamp: number;
	readonly dpRank: number | undefined;
	readonly events: readonly VllmEvent[];
}

/** Fields of the array form behind the type, in order; what follows is the tail. */
const STORED_FIELDS = [
	"block_hashes",
	"parent_block_hash",
	"token_ids",
	"block_size",
	"lora_id",
	"medium",
	"lora_name",
	"extra_keys",
] as const;
const REMOVED_FIELDS = ["block_hashes", "medium"] as const;
/** The tail when it is long enough to be this one. */
const TAIL_FIELDS = [
	"group_idx",
	"kv_cache_spec_kind",
	"kv_cache_spec_sliding_window",
	"locality",
	"source_kind",
] as const;
const FIXED_TAIL_LENGTH = 4;
const CACHE_SALT_PREFIX = "dynamo-cache-salt:";

const TIERS: Readonly<Record<string, StorageTier>> = {
	GPU: "device",
	DEVICE: "device",
	CPU: "host_pinned",
	CPU_PINNED: "host_pinned",
	CPU_TIER1: "host_pinned",
	CPU_TIER2: "disk",
	DISK: "disk",
	NVME: "disk",
	STORAGE: "disk",
	EXTERNAL: "external",
	NETWORK: "external",
	REMOTE: "external",
	SHARED: "external",
};

/** Gives an event in array form its names. Older tails have no fixed order: the kinds of the values tell. */
function namedFields(fields: readonly string[], values: readonly unknown[]): Record<string, unknown> {
	const named: Record<string, unknown> = {};
	for (let i = 0; i < fields.length && i < values.length; i++) named[fields[i] as string] = values[i];
	const tail = values.slice(fields.length);
	if (tail.length >= FIXED_TAIL_LENGTH) {
		for (let i = 0; i < TAIL_FIELDS.length && i < tail.length; i++) named[TAIL_FIELDS[i] as string] = tail[i];
		return named;
	}
	for (const value of tail) {
		if (Array.isArray(value)) named.block_mm_infos ??= value;
		else if (typeof value === "string") named.kv_cache_spec_kind ??= value;
		else if (typeof value === "number") {
			if (named.group_idx === undefined) named.group_idx = value;
			else named.kv_cache_spec_sliding_window ??= value;
		}
	}
	return named;
}

/** A block hash of any form: u64, i64 with the same bits, or bytes, of which the last eight count. */
function readHash(value: unknown, event: FieldReader, name: string): bigint {
	if (typeof value === "bigint") return BigInt.asUintN(64, value);
	if (typeof value === "number" && Number.isSafeInteger(value)) return BigInt.asUintN(64, BigInt(value));
	if (Buffer.isBuffer(value) && value.length >= 8) return value.readBigUInt64BE(value.length - 8);
	return event.fail(`${name} must hold 64-bit integers`);
}

function readHashes(event: FieldReader): bigint[] {
	const list = event.member("block_hashes");
	if (!Array.isArray(list)) return event.fail("block_hashes must be an array");
	return list.map((value) => readHash(value, event, "block_hashes"));
}

/** Token ids, and whether they came as pairs `[a, b], [b, c], ...`, of which the ids are a, b, c, ... */
function readTokens(event: FieldReader): { tokenIds: number[]; pairs: boolean } {
	const list = event.member("token_ids");
	if (!Array.isArray(list)) return event.fail("token_ids must be an array");
	const pairs = Array.isArray(list[0]);
	const tokenIds: number[] = [];
	const add = (value: unknown): void => {
		tokenIds.push(isU32(value) ? value : event.fail("token_ids must hold unsigned 32-bit integers"));
	};
	for (let i = 0; i < list.length; i++) {
		const item = list[i];
		if (!pairs) add(item);
		else if (!Array.isArray(item) || item.length !== 2) return event.fail("token_ids must be all pairs or none");
		else {
			add(item[0]);
			if (i === list.length - 1) add(item[1]);
		}
	}
	return { tokenIds, pairs };
}

function readPlace(event: FieldReader): VllmPlace {
	const { medium, locality, group_idx: group, kv_cache_spec_kind: kind } = event.value;
	const isLocal = locality === undefined || locality === null || String(locality).toUpperCase() === "LOCAL";
	return {
		tier: typeof medium === "string" ? (TIERS[medium.toUpperCase()] ?? "external") : "device",
		remote: !isLocal,
		secondary: typeof kind === "string" ? !/full|mla/i.test(kind) : typeof group === "number" && group !== 0,
	};
}

/** The names of a block that are no tokens: 64 hex digits name a picture or the like; see `CACHE_SALT_PREFIX` for the other. */
function mmHashOf(key: unknown): bigint | undefined {
	const text = Array.isArray(key) ? key[0] : key;
	return typeof text === "string" && /^[0-9a-f]{64}$/i.test(text) ? BigInt(`0x${text.slice(0, 16)}`) : undefined;
}

function readMmObjects(event: FieldReader): VllmStored["mmObjects"] {
	const { block_mm_infos: infos, extra_keys: extra } = event.value;
	if (Array.isArray(infos)) {
		return infos.map((info: unknown) => {
			if (!isJsonObject(info) || !Array.isArray(info.mm_objects)) return undefined;
			return info.mm_objects.filter(isJsonObject).map((object) => ({
				mmHash: readHash(object.mm_hash, event, "mm_hash"),
				offsets: object.offsets === undefined || object.offsets === null ? [] : readOffsets(object.offsets, event),
			}));
		});
	}
	if (!Array.isArray(extra)) return undefined;
	const found = extra.map((keys: unknown) => {
		const hashes = (Array.isArray(keys) ? keys : []).map(mmHashOf).filter((hash) => hash !== undefined);
		return hashes.length === 0 ? undefined : hashes.map((mmHash) => ({ mmHash, offsets: [] }));
	});
	return found.some((objects) => objects !== undefined) ? found : undefined;
}

function saltOf(event: FieldReader): string | undefined {
	const own = event.optionalString("cache_salt");
	const { extra_keys: extra } = event.value;
	if (own !== undefined || !Array.isArray(extra) || !Array.isArray(extra[0])) return own || undefined;
	const marked = extra[0].find((key: unknown) => typeof key === "string" && key.startsWith(CACHE_SALT_PREFIX));
	return (marked as string | undefined)?.slice(CACHE_SALT_PREFIX.length) || undefined;
}

function readEvent(value: unknown): VllmEvent | undefined {
	const isArray = Array.isArray(value);
	const kind = isArray ? value[0] : isJsonObject(value) ? value.type : undefined;
	switch (kind) {
		case "BlockStored": {
			const event = new FieldReader(isArray ? namedFields(STORED_FIELDS, value.slice(1)) : value, "BlockStored");
			const parent = event.value.parent_block_hash;
			return {
				type: "stored",
				...readPlace(event),
				blockHashes: readHashes(event),
				parentHash: parent === undefined || parent === null ? undefined : readHash(parent, event, "parent_block_hash"),
				...readTokens(event),
				blockSize: event.u32("block_size"),
				loraName: event.optionalString("lora_name") || undefined,
				cacheSalt: saltOf(event),
				mmObjects: readMmObjects(event),
			};
		}
		case "BlockRemoved": {
			const event = new FieldReader(isArray ? namedFields(REMOVED_FIELDS, value.slice(1)) : value, "BlockRemoved");
			return { type: "removed", ...readPlace(event), blockHashes: readHashes(event) };
		}
		case "AllBlocksCleared":
			return { type: "cleared" };
		case "Ignored":
			return undefined;
		default:
			return new FieldReader({}, "KV event").fail(`type ${JSON.stringify(kind)} is not known`);
	}
}

/**
 * Reads the third frame. Events of type "Ignored" are left out.
 * @throws DynamoError InvalidArgument for a batch or event at fault, Error for bytes that are no msgpack.
 */
export function decodeVllmBatch(payload: Buffer): VllmEventBatch {
	const batch = unpackMsgpack(payload);
	const at = new FieldReader({}, "KV event batch");
	if (!Array.isArray(batch) || !Array.isArray(batch[1])) return at.fail("must be [timestamp, events, rank]");
	const [timestamp, events, rank] = batch as [unknown, unknown[], unknown];
	return {
		timestamp: typeof timestamp === "number" ? timestamp : at.fail("the timestamp must be a number"),
		dpRank: isU32(rank) ? rank : undefined,
		events: events.map(readEvent).filter((event) => event !== undefined),
	};
}

const writer = new MsgpackWriter();

function eventToWire(event: KvCacheEvent): Record<string, unknown> {
	switch (event.type) {
		case "stored":
			return {
				type: "BlockStored",
				block_hashes: event.blocks.map((block) => block.blockHash),
				parent_block_hash: event.parentHash ?? null,
				token_ids: event.tokenIds,
				block_size: event.blockSize,
				lora_name: event.loraName,
				cache_salt: event.cacheSalt,
				group_idx: 0,
			};
		case "removed":
			return { type: "BlockRemoved", block_hashes: event.blockHashes, group_idx: 0 };
		case "cleared":
			return { type: "AllBlocksCleared" };
	}
}

/** The third frame, events in map form. @param timestamp seconds since 1970. */
export function encodeVllmBatch(timestamp: number, events: readonly KvCacheEvent[], dpRank: number): Buffer {
	writer.begin(0);
	writer.arrayHeader(3);
	writer.float64(timestamp);
	writer.value(events.map(eventToWire));
	writer.integer(dpRank);
	return writer.finish();
}

/** Sequence of the message that ends a replay. */
export const VLLM_REPLAY_END = 0xffff_ffff_ffff_ffffn;

/** A sequence as its frame. */
export function encodeVllmSequence(sequence: bigint): Buffer {
	const frame = Buffer.allocUnsafe(8);
	frame.writeBigUInt64BE(sequence);
	return frame;
}
