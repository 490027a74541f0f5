// SPDX-License-Identifier: Apache-2.0
// What a worker tells of its cache: index and dumps, numbering and ranges, the engine's own socket, settings.
import { KvEventTap, type StepReport } from "@dynamo-ts/engine";
import {
	blockHashes,
	decodeActiveSequences,
	decodeForwardPassMetrics,
	decodeRouterEvents,
	decodeVllmBatch,
	decodeWorkerLoad,
	type EventEnvelope,
	type EventSourceRecord,
	encodeVllmSequence,
	type KvCacheEvent,
	type RouterEventData,
	VLLM_REPLAY_END,
	type WorkerKvAnswer,
	workerKvAnswerFromWire,
	workerKvQueryToWire,
} from "@dynamo-ts/protocols/internal";
import { createMemStore, DistributedRuntime, loadZmq } from "@dynamo-ts/runtime/internal";
import { freePort, until } from "@dynamo-ts/testing/internal";
import fc from "fast-check";
import { afterEach, describe, expect, it } from "vitest";
import { ScriptedEngine } from "../test-support/scripted-engine.js";
import { BlockIndex } from "./block-index.js";
import { EngineSocket } from "./engine-socket.js";
import { KvEventPublisher } from "./kv-event-publisher.js";
import { endpointOfRank, parseKvEventsConfig } from "./kv-events-config.js";
import { LoadPublisher } from "./load-publisher.js";
import { WorkerEvents } from "./worker-events.js";

const ENDPOINT = { namespace: "n", component: "c", name: "generate" };
const SCOPE = { kind: "endpoint", endpoint: ENDPOINT } as const;
const ends: (() => Promise<unknown>)[] = [];

afterEach(async () => {
	for (const end of ends.splice(0).reverse()) await end();
});

async function startRuntime(): Promise<DistributedRuntime> {
	const runtime = await DistributedRuntime.create({
		discoveryBackend: "mem",
		memStore: createMemStore(),
		shutdownGraceMs: 0,
		log: { filter: "off", format: "readable", ansi: false, localTime: false },
	});
	ends.push(() => runtime.shutdown());
	return runtime;
}

function stored(tokens: readonly number[], parent?: bigint): KvCacheEvent {
	const { tokensHashes, sequenceHashes } = blockHashes(tokens, 4);
	return {
		type: "stored",
		parentHash: parent,
		blocks: sequenceHashes.map((blockHash, i) => ({ blockHash, tokensHash: tokensHashes[i]! })),
		tokenIds: tokens.slice(0, sequenceHashes.length * 4),
		blockSize: 4,
	};
}

describe("the index of a worker's blocks", () => {
	it("its dump, applied to nothing, gives the blocks that can be found; parents come first", () => {
		const change = fc.oneof(
			{ weight: 4, arbitrary: fc.record({ parent: fc.nat({ max: 30 }), count: fc.integer({ min: 1, max: 4 }) }) },
			{ weight: 2, arbitrary: fc.record({ remove: fc.nat({ max: 60 }) }) },
			{ weight: 1, arbitrary: fc.constant("clear" as const) },
		);
		fc.assert(
			fc.property(fc.array(change, { maxLength: 80 }), (changes) => {
				const index = new BlockIndex();
				const parents = new Map<bigint, bigint | undefined>();
				let next = 1n;
				for (const one of changes) {
					if (one === "clear") {
						index.apply({ type: "cleared" });
						parents.clear();
					} else if ("remove" in one) {
						const hash = BigInt(one.remove);
						index.apply({ type: "removed", blockHashes: [hash] });
						parents.delete(hash);
					} else {
						const at = BigInt(one.parent);
						const parentHash = parents.has(at) ? at : undefined;
						const blocks = Array.from({ length: one.count }, () => next++).map((hash) => ({
							blockHash: hash,
							tokensHash: hash,
						}));
						index.apply({ type: "stored", parentHash, blocks });
						for (const [i, { blockHash }] of blocks.entries())
							parents.set(blockHash, i === 0 ? parentHash : blockHash - 1n);
					}
				}
				expect(index.size).toBe(parents.size);
				const findable = (hash: bigint): boolean => {
					if (!parents.has(hash)) return false;
					const parent = parents.get(hash);
					return parent === undefined || findable(parent);
				};
				const told = new Map<bigint, bigint | undefined>();
				for (const data of index.dump()) {
					if (data.type !== "stored") throw new Error("only stored blocks make a dump");
					let parent = data.parentHash;
					if (parent !== undefined) expect(told.has(parent)).toBe(true);
					for (const { blockHash } of data.blocks) {
						expect(told.has(blockHash)).toBe(false);
						told.set(blockHash, parent);
						parent = blockHash;
					}
				}
				expect([...told.keys()].sort()).toEqual([...parents.keys()].filter(findable).sort());
				for (const [hash, parent] of told) expect(parents.get(hash)).toBe(parent);
			}),
		);
	});

	it("a chain of any length is told in pieces", () => {
		const index = new BlockIndex();
		const blocks = Array.from({ length: 5000 }, (_, i) => ({ blockHash: BigInt(i), tokensHash: 0n }));
		index.apply({ type: "stored", parentHash: undefined, blocks });
		const dump = index.dump() as Extract<RouterEventData, { type: "stored" }>[];
		expect(dump.map(({ parentHash, blocks: run }) => [parentHash, run.length])).toEqual([
			[undefined, 1024],
			[1023n, 1024],
			[2047n, 1024],
			[3071n, 1024],
			[4095n, 904],
		]);
	});
});

describe("the publisher of KV events", () => {
	const open = async (bufferedEvents?: number) => {
		const runtime = await startRuntime();
		const envelopes: EventEnvelope[] = [];
		await runtime.events.subscribe(SCOPE, "kv-events", { onEvent: (one) => envelopes.push(one) });
		const publisher = await KvEventPublisher.open(runtime, { endpoint: ENDPOINT, blockSize: 4, bufferedEvents });
		ends.push(() => publisher.close());
		const query = (startEventId?: bigint, endEventId?: bigint, workerId = runtime.instanceId): WorkerKvAnswer =>
			publisher.answer({ workerId, dpRank: 0, startEventId, endEventId, supportsTreeDumpFailed: true });
		return { runtime, publisher, envelopes, query };
	};
	const ids = (answer: WorkerKvAnswer): bigint[] => ("events" in answer ? answer.events.map((one) => one.eventId) : []);

	it("numbers from 1, one message per step, and announces itself with all three records", async () => {
		const { runtime, publisher, envelopes } = await open();
		publisher.publish([stored([1, 2, 3, 4, 5, 6, 7, 8])]);
		publisher.publish([{ type: "removed", blockHashes: [7n] }, { type: "cleared" }]);
		await until("both messages", () => envelopes.length === 2);
		const events = envelopes.map(({ payload }) => decodeRouterEvents(payload));
		expect(events.map((batch) => batch.map((one) => one.eventId))).toEqual([[1n], [2n, 3n]]);
		expect(events[0]![0]).toMatchObject({
			workerId: runtime.instanceId,
			dpRank: 0,
			storageTier: "device",
			residencyDomain: "worker",
			data: { type: "stored", parentHash: undefined, blocks: [{}, {}] },
		});
		const [source] = (await runtime.discovery.list("v1/event_sources")) as EventSourceRecord[];
		const [channel] = await runtime.discovery.list("v1/event_channels");
		const [instance] = await runtime.discovery.list("v1/instances");
		expect(channel).toMatchObject({ scope: SCOPE, topic: "kv-events", instance_id: publisher.publisherId });
		const { type: _type, ...target } = instance as unknown as Record<string, unknown>;
		expect(target.endpoint).toBe(`worker_kv_query_source_${publisher.publisherId.toString(16)}`);
		expect(source).toEqual({
			type: "EventSource",
			scope: SCOPE,
			topic: "kv-events",
			publisher_id: publisher.publisherId,
			metadata: {
				kv_state_endpoint: ENDPOINT,
				worker: { worker_id: runtime.instanceId, dp_rank: 0 },
				publisher_id: publisher.publisherId,
				recovery_target: target,
			},
		});
		await publisher.close();
		for (const bucket of ["v1/event_sources", "v1/event_channels", "v1/instances"] as const)
			expect(await runtime.discovery.list(bucket)).toEqual([]);
	});

	it("answers ranges from what it keeps, else with everything", async () => {
		const { publisher, query } = await open(4);
		expect(query()).toEqual({ type: "dump", events: [], lastEventId: 0n });
		expect(query(1n)).toEqual({ type: "too_new", newestAvailable: 0n });
		for (let i = 0; i < 10; i++) publisher.publish([stored([i, i, i, i])]);
		expect(ids(query(7n))).toEqual([7n, 8n, 9n, 10n]);
		expect(query(8n, 9n)).toMatchObject({ type: "events", lastEventId: 9n });
		expect(ids(query(8n, 9n))).toEqual([8n, 9n]);
		expect(ids(query(9n, 99n))).toEqual([9n, 10n]);
		expect(query(6n)).toMatchObject({ type: "dump", lastEventId: 10n });
		expect(query(11n)).toEqual({ type: "too_new", newestAvailable: 10n });
		expect(query(9n, 8n)).toEqual({ type: "invalid_range", startId: 9n, endId: 8n });
		expect(query(undefined, undefined, 5n)).toMatchObject({ type: "error" });
		const dump = query() as Extract<WorkerKvAnswer, { type: "dump" }>;
		expect(dump.events).toHaveLength(10);
		expect(ids(dump)).toEqual(Array.from({ length: 10 }, (_, i) => BigInt(i + 1)));
	});

	it("nobody needs what came before a clear", async () => {
		const { publisher, query } = await open();
		publisher.publish([stored([1, 1, 1, 1])]);
		publisher.publish([{ type: "cleared" }, stored([2, 2, 2, 2])]);
		expect(query(1n)).toMatchObject({ type: "dump", lastEventId: 3n, events: [{ data: { blocks: [{}] } }] });
		expect(ids(query(2n))).toEqual([2n, 3n]);
	});

	it("blocks of another size than the card's are refused, with both numbers", async () => {
		const { publisher } = await open();
		expect(() => publisher.publish([{ ...stored([1, 2, 3, 4]), blockSize: 16 } as KvCacheEvent])).toThrow(
			"the engine's blocks hold 16 tokens, the model card says 4",
		);
	});

	it("is asked over the request plane, under the worker's own id or that of another", async () => {
		const runtime = await startRuntime();
		const publisher = await KvEventPublisher.open(runtime, { endpoint: ENDPOINT, blockSize: 4, workerId: 77n });
		publisher.publish([stored([1, 2, 3, 4])]);
		const [source] = (await runtime.discovery.list("v1/event_sources")) as EventSourceRecord[];
		expect(source!.metadata).toMatchObject({ worker: { worker_id: 77n }, recovery_target: { instance_id: 77n } });
		const answer = await new Promise<WorkerKvAnswer>((resolve, reject) => {
			void runtime.send(
				{ type: "Endpoint", ...source!.metadata.recovery_target! },
				{
					id: "q",
					payload: workerKvQueryToWire({
						workerId: 77n,
						dpRank: 0,
						startEventId: 1n,
						endEventId: undefined,
						supportsTreeDumpFailed: true,
					}),
				},
				{ onItem: (item: unknown) => resolve(workerKvAnswerFromWire(item)), onEnd: () => {}, onError: reject },
			);
		});
		expect(answer).toMatchObject({ type: "events", lastEventId: 1n });
		await publisher.close();
	});
});

describe("the load of a worker", () => {
	it("is told when it changes; finished prompts and steps too", async () => {
		const runtime = await startRuntime();
		const engine = new ScriptedEngine();
		const topics: Record<string, EventEnvelope[]> = {};
		for (const topic of ["kv_metrics", "active_sequences_events", "forward-pass-metrics"]) {
			topics[topic] = [];
			await runtime.events.subscribe(SCOPE, topic, { onEvent: (one) => topics[topic]!.push(one) });
		}
		let usedBlocks = 3;
		let report: (report: StepReport) => void = () => {};
		const watched = Object.assign(engine, {
			stats: () => ({ ...new ScriptedEngine().stats(), usedBlocks, running: 0, waiting: 0 }),
			onStep: (callback: typeof report) => {
				report = callback;
			},
		});
		const load = await LoadPublisher.open(runtime, watched, ENDPOINT);
		ends.push(() => load.close());
		load.touch();
		load.prefillCompleted("a");
		load.prefillCompleted("b");
		usedBlocks = 5;
		await until("the change", () => topics.kv_metrics!.length === 2);
		expect(topics.kv_metrics!.map(({ payload }) => decodeWorkerLoad(payload).kvUsedBlocks)).toEqual([3n, 5n]);
		await until("the prompts", () => topics.active_sequences_events!.length === 1);
		expect(decodeActiveSequences(topics.active_sequences_events![0]!.payload)).toMatchObject(
			["a", "b"].map((requestId) => ({
				requestId,
				worker: { workerId: runtime.instanceId, dpRank: 0 },
				change: { type: "prefill_completed" },
				routerId: runtime.instanceId,
			})),
		);
		const none = { requests: 0, tokens: 0, variance: 0 };
		report({
			seconds: 0.25,
			prefill: { requests: 2, tokens: 30, variance: 25, cachedTokens: 16 },
			decode: none,
			waitingPrefill: none,
			waitingDecode: none,
		});
		// Then an idle second.
		await until("two reports", () => topics["forward-pass-metrics"]!.length >= 2);
		const reports = topics["forward-pass-metrics"]!.map(({ payload }) => decodeForwardPassMetrics(payload));
		expect(reports[0]).toMatchObject({
			workerId: runtime.instanceId,
			counterId: 1n,
			wallTime: 0.25,
			scheduled: { numPrefillRequests: 2, sumPrefillTokens: 30, varPrefillLength: 25, sumPrefillKvTokens: 16 },
			queued: { numPrefillRequests: 0, sumPrefillKvTokens: undefined },
		});
		expect(reports[1]).toMatchObject({ counterId: 2n, wallTime: 0, scheduled: { numPrefillRequests: 0 } });
	});

	it("an engine that tells nothing of its cache has no source of events", async () => {
		const runtime = await startRuntime();
		const engine = new ScriptedEngine();
		engine.onKvEvents = () => {
			throw new Error("tells nothing");
		};
		const tap = KvEventTap.attach(engine);
		expect(tap).toBeUndefined();
		const events = await WorkerEvents.open(runtime, {
			engine,
			endpoint: ENDPOINT,
			blockSize: 4,
			tap,
			kvEvents: { enabled: true },
		});
		expect(await runtime.discovery.list("v1/event_sources")).toEqual([]);
		await events.close();
		expect(await runtime.discovery.list("v1/event_channels")).toEqual([]);
	});

	it("what an engine told before its worker was there is not lost", () => {
		const engine = new ScriptedEngine();
		const tap = KvEventTap.attach(engine)!;
		const early = [stored([1, 2, 3, 4])];
		engine.emitKvEvents(early);
		const heard: (readonly KvCacheEvent[])[] = [];
		tap.drainTo((events) => heard.push(events));
		const late = [{ type: "cleared" as const }];
		engine.emitKvEvents(late);
		expect(heard).toEqual([early, late]);
	});
});

describe("an engine's own socket", () => {
	const open = async (overrides: object = {}) => {
		const [port, replayPort] = [await freePort(), await freePort()];
		const socket = await EngineSocket.open({
			endpoint: `tcp://127.0.0.1:${port}`,
			replayEndpoint: `tcp://127.0.0.1:${replayPort}`,
			topic: "kv",
			...overrides,
		});
		ends.push(() => socket.close());
		return { socket, port, replayPort };
	};
	const replay = async (port: number, from: bigint): Promise<Buffer[][]> => {
		const zmq = await loadZmq();
		const dealer = new zmq.Dealer({ linger: 0, receiveTimeout: 5000 });
		dealer.connect(`tcp://127.0.0.1:${port}`);
		await dealer.send(["", encodeVllmSequence(from)]);
		const answers: Buffer[][] = [];
		for (;;) {
			const frames = await dealer.receive();
			answers.push(frames);
			if (frames.at(-2)!.readBigUInt64BE() === VLLM_REPLAY_END) break;
		}
		dealer.close();
		return answers;
	};

	it("publishes topic, sequence and batch; what was missed is sent again, as vLLM does it", async () => {
		const { socket, port, replayPort } = await open();
		const zmq = await loadZmq();
		const subscriber = new zmq.Subscriber({ linger: 0, receiveTimeout: 50 });
		subscriber.connect(`tcp://127.0.0.1:${port}`);
		subscriber.subscribe("kv");
		let frames: Buffer[] | undefined;
		let published = 0;
		while (frames === undefined) {
			socket.publish([stored([published, 2, 3, 4])]);
			published++;
			frames = await subscriber.receive().catch(() => undefined);
		}
		subscriber.close();
		expect(frames[0]!.toString()).toBe("kv");
		const batch = decodeVllmBatch(frames[2]!);
		expect(batch).toMatchObject({ dpRank: 0, events: [{ type: "stored", blockSize: 4 }] });
		expect(Math.abs(batch.timestamp - Date.now() / 1000)).toBeLessThan(60);
		socket.publish([{ type: "removed", blockHashes: [1n] }]);
		const answers = await replay(replayPort, 0n);
		expect(answers).toHaveLength(published + 2);
		for (const [i, [delimiter, sequence, payload]] of answers.slice(0, -1).entries()) {
			expect(delimiter).toHaveLength(0);
			expect(sequence!.readBigUInt64BE()).toBe(BigInt(i));
			expect(decodeVllmBatch(payload!).events).toHaveLength(1);
		}
		expect(answers.at(-1)!.map((frame) => frame.toString("hex"))).toEqual(["", "ffffffffffffffff", ""]);
		expect(await replay(replayPort, BigInt(published))).toHaveLength(2);
		expect(await replay(replayPort, 10_000n)).toHaveLength(1);
	});

	it("keeps only the last batches, and answers as the mocker does where asked to", async () => {
		const { socket, replayPort } = await open({ bufferSteps: 3, replayTopic: true, topic: "" });
		for (let i = 0; i < 20; i++) socket.publish([{ type: "removed", blockHashes: [BigInt(i)] }]);
		const answers = await replay(replayPort, 0n);
		expect(answers.map((frames) => frames.length)).toEqual([4, 4, 4, 4]);
		expect(answers.slice(0, -1).map((frames) => frames[2]!.readBigUInt64BE())).toEqual([17n, 18n, 19n]);
	});

	it("an asker that sends nonsense gets no answer, the next one does", async () => {
		const { replayPort } = await open();
		const zmq = await loadZmq();
		const dealer = new zmq.Dealer({ linger: 0 });
		dealer.connect(`tcp://127.0.0.1:${replayPort}`);
		for (const frames of [[""], ["x", "y"], ["", "short"], ["", encodeVllmSequence(0n), "more"]])
			await dealer.send(frames);
		expect(await replay(replayPort, 0n)).toHaveLength(1);
		dealer.close();
	});

	it("a port that is taken is told", async () => {
		const { port } = await open();
		await expect(EngineSocket.open({ endpoint: `tcp://127.0.0.1:${port}` })).rejects.toThrow(
			new RegExp(`KV events cannot be published at tcp://127.0.0.1:${port}`),
		);
	});
});

describe("--kv-events-config", () => {
	it.each([
		["{}", { enabled: true }],
		['{"enable_kv_cache_events":false,"publisher":"zmq"}', { enabled: false }],
		['{"publisher":"null"}', { enabled: true }],
		[
			'{"publisher":"zmq","endpoint":"tcp://*:5557","replay_endpoint":"tcp://[::1]:6000","topic":"kv","buffer_steps":5,"hwm":6,"max_queue_size":7,"enable_kv_cache_events":true,"unknown":1}',
			{
				enabled: true,
				socket: {
					endpoint: "tcp://*:5557",
					replayEndpoint: "tcp://[::1]:6000",
					topic: "kv",
					bufferSteps: 5,
					highWaterMark: 6,
					maxQueueSize: 7,
				},
			},
		],
		['{"publisher":"zmq"}', { enabled: true, socket: { endpoint: "tcp://*:5557" } }],
	])("%s", (text, expected) => {
		expect(parseKvEventsConfig(text)).toEqual(expected);
	});
	it.each([
		["nonsense", /is no JSON/],
		["[]", /must be a JSON object/],
		['{"publisher":"kafka"}', /publisher must be "zmq" or "null"/],
		['{"publisher":"zmq","endpoint":"ipc:///tmp/x"}', /endpoint "ipc:\/\/\/tmp\/x" must be tcp/],
		['{"buffer_steps":0}', /buffer_steps must be a whole number/],
	])("%s is refused", (text, message) => {
		expect(() => parseKvEventsConfig(text)).toThrow(message);
	});
	it("the rank is added to the port", () => {
		expect(endpointOfRank("tcp://*:5557", 3)).toBe("tcp://*:5560");
		expect(() => endpointOfRank("tcp://*:65535", 1)).toThrow("must be tcp://host:port");
	});
});
