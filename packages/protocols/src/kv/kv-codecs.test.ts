// SPDX-License-Identifier: Apache-2.0
// Codecs of KV events against what Dynamo 1.6.1 wrote, and against values made at random.
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { decodeBody, encodeBody } from "../frames/body-codec.js";
import { unpackMsgpack } from "../frames/msgpack-reader.js";
import { MsgpackWriter } from "../frames/msgpack-writer.js";
import { fixture } from "../testing/fixtures.js";
import { blockHashes } from "./block-hash.js";
import type { KvCacheEvent } from "./cache-event.js";
import {
	decodeRouterEvents,
	encodeRouterEvents,
	RESIDENCY_DOMAINS,
	type RouterEvent,
	routerEventFromWire,
	STORAGE_TIERS,
} from "./router-event.js";
import { decodeVllmBatch, encodeVllmBatch, VLLM_REPLAY_END, type VllmStored } from "./vllm-events.js";
import {
	type WorkerKvAnswer,
	workerKvAnswerFromWire,
	workerKvAnswerToWire,
	workerKvQueryEndpoint,
	workerKvQueryFromWire,
	workerKvQueryToWire,
} from "./worker-kv-query.js";

const u64 = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });
const u32 = fc.nat({ max: 0xffff_ffff });

function pack(value: unknown): Buffer {
	const writer = new MsgpackWriter();
	writer.begin(0);
	writer.value(value);
	return writer.finish();
}

const routerEvent: fc.Arbitrary<RouterEvent> = fc.record({
	workerId: u64,
	dpRank: u32,
	eventId: u64,
	storageTier: fc.constantFrom(...STORAGE_TIERS),
	residencyDomain: fc.constantFrom(undefined, ...RESIDENCY_DOMAINS),
	data: fc.oneof(
		fc.record({
			type: fc.constant("stored" as const),
			parentHash: fc.option(u64, { nil: undefined }),
			blocks: fc.array(fc.record({ blockHash: u64, tokensHash: u64 }), { maxLength: 20 }),
		}),
		fc.record({ type: fc.constant("removed" as const), blockHashes: fc.array(u64, { maxLength: 20 }) }),
		fc.record({ type: fc.constant("cleared" as const) }),
	),
});

describe("router events", () => {
	test("any events come back as they were", () => {
		fc.assert(
			fc.property(fc.array(routerEvent, { maxLength: 5 }), (events) => {
				expect(decodeRouterEvents(Buffer.from(encodeRouterEvents(events)))).toEqual(events);
			}),
		);
	});

	test("multimodal objects and start positions travel too", () => {
		const event: RouterEvent = {
			workerId: 1n,
			dpRank: 0,
			eventId: 1n,
			storageTier: "disk",
			residencyDomain: "worker",
			data: {
				type: "stored",
				parentHash: undefined,
				startPosition: 16n,
				blocks: [{ blockHash: 2n, tokensHash: 3n, mmObjects: [{ mmHash: 2n ** 64n - 1n, offsets: [[0, 5]] }] }],
			},
		};
		expect(decodeRouterEvents(Buffer.from(encodeRouterEvents([event])))).toEqual([event]);
	});

	test("an event that travels alone is taken, members that are not known are ignored", () => {
		const wire = {
			worker_id: 5,
			storage_tier: "device",
			new: 1,
			event: { event_id: 1, data: "cleared", dp_rank: 0, x: 2 },
		};
		expect(decodeRouterEvents(pack(wire))).toEqual([
			{
				workerId: 5n,
				dpRank: 0,
				eventId: 1n,
				storageTier: "device",
				residencyDomain: undefined,
				data: { type: "cleared" },
			},
		]);
	});

	test.each([
		[
			"residency_domain must be one of",
			{ worker_id: 1, residency_domain: null, event: { event_id: 1, data: "cleared" } },
		],
		["worker_id must be an unsigned", { worker_id: -1, event: { event_id: 1, data: "cleared" } }],
		["worker_id must be an unsigned", { worker_id: 1.5, event: { event_id: 1, data: "cleared" } }],
		["missing field `event_id`", { worker_id: 1, event: { data: "cleared" } }],
		["data must be", { worker_id: 1, event: { event_id: 1, data: "gone" } }],
		["data must be", { worker_id: 1, event: { event_id: 1, data: { stored: {}, removed: {} } } }],
		["data knows", { worker_id: 1, event: { event_id: 1, data: { moved: {} } } }],
		[
			"block_hashes must be an unsigned",
			{ worker_id: 1, event: { event_id: 1, data: { removed: { block_hashes: ["1"] } } } },
		],
		["blocks must be an array", { worker_id: 1, event: { event_id: 1, data: { stored: { blocks: 1 } } } }],
	])("%s", (message, value) => {
		expect(() => routerEventFromWire(value)).toThrow(message);
	});

	test("random bytes give an error, never anything else", () => {
		fc.assert(
			fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
				for (const decode of [decodeRouterEvents, decodeVllmBatch]) {
					try {
						decode(Buffer.from(bytes));
					} catch (error) {
						expect(error).toBeInstanceOf(Error);
					}
				}
			}),
		);
	});
});

describe("worker KV queries", () => {
	const recorded = JSON.parse(fixture("kv/worker_kv_query_exchange.json").toString()) as {
		request_tcp_hex: { hex: string }[];
		response_tcp_hex: { hex: string }[];
	};

	test("requests equal the recorded ones", () => {
		for (const { hex } of recorded.request_tcp_hex) {
			const frame = Buffer.from(hex, "hex");
			// The body is the last thing in the frame, and a map of six.
			const at = frame.indexOf(Buffer.from("86a9776f726b65725f6964", "hex"));
			if (at < 0) continue;
			const body = frame.subarray(at);
			const query = workerKvQueryFromWire(decodeBody(body, "msgpack"));
			expect(query).toMatchObject({ dpRank: 0, startEventId: undefined, supportsTreeDumpFailed: true });
			expect(encodeBody(workerKvQueryToWire(query), "msgpack").equals(body)).toBe(true);
		}
		expect.assertions(4);
	});

	test("dumps equal the recorded ones", () => {
		let dumps = 0;
		for (const { hex } of recorded.response_tcp_hex) {
			const frame = Buffer.from(hex, "hex");
			const at = frame.indexOf(Buffer.from("82a464617461", "hex"));
			if (at < 0) continue;
			const body = frame.subarray(at);
			const { data } = decodeBody(body, "msgpack") as { data: unknown };
			const answer = workerKvAnswerFromWire(data);
			expect(answer.type).toBe("dump");
			const wire = workerKvAnswerToWire(answer, workerKvQueryFromWire({ worker_id: 1 }));
			expect(encodeBody({ data: wire, complete_final: false }, "msgpack").equals(body)).toBe(true);
			dumps++;
		}
		expect(dumps).toBe(2);
	});

	const answers: WorkerKvAnswer[] = [
		{ type: "events", events: [], lastEventId: 2n ** 63n },
		{ type: "dump", events: [], lastEventId: 0n },
		{ type: "too_new", newestAvailable: 7n },
		{ type: "invalid_range", startId: 9n, endId: 3n },
		{ type: "dump_failed" },
		{ type: "error", message: "no" },
	];
	test.each(answers)("$type comes back over both codecs", (answer) => {
		const asked = { workerId: 1n, dpRank: 0, startEventId: 9n, endEventId: undefined, supportsTreeDumpFailed: true };
		for (const codec of ["msgpack", "json"] as const) {
			const bytes = encodeBody(workerKvAnswerToWire(answer, asked), codec);
			expect(workerKvAnswerFromWire(decodeBody(bytes, codec))).toEqual(answer);
		}
	});

	test("the endpoint's name has the id as in keys", () => {
		expect(workerKvQueryEndpoint(5303154401112122n)).toBe("worker_kv_query_source_12d730da44703a");
	});

	test("an answer of another kind is refused", () => {
		expect(() => workerKvAnswerFromWire({ Surprise: 1 })).toThrow("Surprise");
		expect(() => workerKvQueryFromWire({ worker_id: 1, kind: "census" })).toThrow("census");
	});
});

describe("events as vLLM sends them", () => {
	const frames = JSON.parse(fixture("kv/engine_zmq_vllm_frames_mocker.json").toString()) as {
		src: string;
		frames_hex: string[];
	}[];
	const published = frames
		.filter((frame) => frame.src === "pub")
		.map((frame) => Buffer.from(frame.frames_hex[2]!, "hex"));

	test("recorded batches: the hashes are Dynamo's, and our bytes equal the mocker's", () => {
		expect(published.length).toBe(9);
		for (const payload of published) {
			const batch = decodeVllmBatch(payload);
			const events: KvCacheEvent[] = batch.events.map((event) => {
				if (event.type === "removed") return { type: "removed", blockHashes: event.blockHashes };
				if (event.type === "cleared") return event;
				const own = blockHashes(event.tokenIds, event.blockSize);
				if (event.parentHash === undefined) expect(own.sequenceHashes).toEqual(event.blockHashes);
				return {
					type: "stored",
					parentHash: event.parentHash,
					blocks: event.blockHashes.map((blockHash, i) => ({ blockHash, tokensHash: own.tokensHashes[i]! })),
					tokenIds: event.tokenIds,
					blockSize: event.blockSize,
				};
			});
			expect(encodeVllmBatch(batch.timestamp, events, batch.dpRank ?? 0).equals(payload)).toBe(true);
		}
	});

	test("a replay ends with the last u64 and no payload", () => {
		const end = frames.find((frame) => frame.src === "replay-DEALER-0" && frame.frames_hex.at(-1) === "")!;
		expect(Buffer.from(end.frames_hex.at(-2)!, "hex").readBigUInt64BE()).toBe(VLLM_REPLAY_END);
	});

	const stored = (event: unknown): VllmStored => decodeVllmBatch(pack([1.5, [event], 0])).events[0] as VllmStored;
	const tuple = (...tail: unknown[]): unknown[] => [
		"BlockStored",
		[-1n, 2],
		null,
		[1, 2, 3, 4],
		2,
		7,
		"GPU",
		"my-lora",
		null,
		...tail,
	];

	test("array form: signed hashes have the same bits, the tail is fixed from four entries on", () => {
		expect(stored(tuple(0, "full_attention", null, "LOCAL"))).toEqual({
			type: "stored",
			tier: "device",
			remote: false,
			secondary: false,
			blockHashes: [2n ** 64n - 1n, 2n],
			parentHash: undefined,
			tokenIds: [1, 2, 3, 4],
			pairs: false,
			blockSize: 2,
			loraName: "my-lora",
			cacheSalt: undefined,
			mmObjects: undefined,
		});
		expect(stored(tuple(1, "sliding_window", 128, "REMOTE", "engine", "later"))).toMatchObject({
			remote: true,
			secondary: true,
		});
		expect(stored(tuple(0, null, null, "MARS"))).toMatchObject({ remote: true });
		expect(stored(tuple(2, null, null, null))).toMatchObject({ remote: false, secondary: true });
	});

	test("array form: an older tail is told apart by its kinds", () => {
		expect(stored(tuple(1))).toMatchObject({ secondary: true });
		expect(stored(tuple(0, 4096))).toMatchObject({ secondary: false });
		expect(stored(tuple([{ mm_objects: [{ mm_hash: 9, offsets: [[0, 2]] }] }, null]))).toMatchObject({
			mmObjects: [[{ mmHash: 9n, offsets: [[0, 2]] }], undefined],
		});
		expect(stored(tuple([{ mm_objects: [{ mm_hash: 9 }] }]))).toMatchObject({
			mmObjects: [[{ mmHash: 9n, offsets: [] }]],
		});
		expect(() => stored(tuple([{ mm_objects: [{ mm_hash: 9, offsets: [["a", 2]] }] }]))).toThrow(/offsets must be/);
		expect(stored(tuple())).toMatchObject({ secondary: false, mmObjects: undefined });
	});

	test("array form: removed and cleared", () => {
		const payload = pack([
			1,
			[["BlockRemoved", [-2n], "CPU"], ["AllBlocksCleared"], ["AllBlocksCleared", "x"], { type: "Ignored" }],
		]);
		expect(decodeVllmBatch(payload)).toEqual({
			timestamp: 1,
			dpRank: undefined,
			events: [
				{ type: "removed", blockHashes: [2n ** 64n - 2n], tier: "host_pinned", remote: false, secondary: false },
				{ type: "cleared" },
				{ type: "cleared" },
			],
		});
	});

	test.each([
		["GPU", "device"],
		["CPU_TIER1", "host_pinned"],
		["cpu_tier2", "disk"],
		["NVME", "disk"],
		["SHARED", "external"],
		[undefined, "device"],
	])("medium %s lies on %s", (medium, tier) => {
		expect(stored({ type: "BlockStored", block_hashes: [1], token_ids: [1], block_size: 1, medium })).toMatchObject({
			tier,
		});
	});

	test("pairs, salts, multimodal keys and byte hashes", () => {
		const event = {
			type: "BlockStored",
			block_hashes: [Buffer.from(`${"00".repeat(24)}0102030405060708`, "hex")],
			parent_block_hash: 3,
			token_ids: [
				[1, 2],
				[2, 3],
			],
			block_size: 2,
			extra_keys: [["dynamo-cache-salt:tenant-a", `00000000deadbeef${"0".repeat(48)}`]],
			unknown: 1,
		};
		expect(stored(event)).toMatchObject({
			blockHashes: [0x0102030405060708n],
			parentHash: 3n,
			tokenIds: [1, 2, 3],
			pairs: true,
			cacheSalt: "tenant-a",
			mmObjects: [[{ mmHash: 0xdeadbeefn, offsets: [] }]],
		});
	});

	test.each([
		['type "Moved" is not known', { type: "Moved" }],
		["token_ids must hold unsigned", { type: "BlockStored", block_hashes: [], token_ids: [-1], block_size: 1 }],
		["block_hashes must hold 64-bit", { type: "BlockStored", block_hashes: ["a"], token_ids: [], block_size: 1 }],
		["block_size must be", { type: "BlockStored", block_hashes: [1], token_ids: [], block_size: "16" }],
	])("%s", (message, event) => {
		expect(() => decodeVllmBatch(pack([1, [event], 0]))).toThrow(message);
	});

	test("any of our own events come back", () => {
		fc.assert(
			fc.property(fc.array(fc.array(u32, { minLength: 4, maxLength: 32 }), { maxLength: 4 }), (prompts) => {
				const events: KvCacheEvent[] = prompts.map((tokens) => {
					const { tokensHashes, sequenceHashes } = blockHashes(tokens, 4);
					return {
						type: "stored",
						parentHash: undefined,
						blocks: sequenceHashes.map((blockHash, i) => ({ blockHash, tokensHash: tokensHashes[i]! })),
						tokenIds: tokens.slice(0, sequenceHashes.length * 4),
						blockSize: 4,
						cacheSalt: "s",
					};
				});
				const back = decodeVllmBatch(Buffer.from(encodeVllmBatch(2.5, events, 3)));
				expect(back.dpRank).toBe(3);
				expect(back.events).toMatchObject(
					events.map((event) => ({
						type: "stored",
						blockHashes: event.type === "stored" ? event.blocks.map((block) => block.blockHash) : [],
						tokenIds: event.type === "stored" ? event.tokenIds : [],
						cacheSalt: "s",
					})),
				);
			}),
		);
	});

	test("a timestamp stays a 64-bit float also where it is whole", () => {
		expect(encodeVllmBatch(1719, [], 0).toString("hex")).toBe("93cb409adc0000000000" + "90" + "00");
		expect(unpackMsgpack(encodeVllmBatch(1719, [], 0))).toEqual([1719, [], 0]);
	});
});
