// SPDX-License-Identifier: Apache-2.0
// An engine in vLLM's format made known to routers: lost batches, an engine started anew, blocks of another size.
import {
	blockHashes,
	encodeVllmBatch,
	encodeVllmSequence,
	type KvCacheEvent,
	type RouterEvent,
} from "@dynamo-ts/protocols/internal";
import { KvEventSubscriber } from "@dynamo-ts/router";
import { createMemStore, DistributedRuntime, loadZmq } from "@dynamo-ts/runtime/internal";
import { Fleet, freePort, testModel, titled, until } from "@dynamo-ts/testing/internal";
import { EngineSocket, relayKvEvents } from "@dynamo-ts/worker/internal";
import { afterEach, describe, expect, it } from "vitest";

const ENDPOINT = { namespace: "n", component: "c", name: "generate" };
const ends: (() => Promise<unknown>)[] = [];

afterEach(async () => {
	for (const end of ends.splice(0).reverse()) await end();
});

function stored(tokens: readonly number[], parentHash?: bigint): KvCacheEvent & { type: "stored" } {
	const { tokensHashes, sequenceHashes } = blockHashes(tokens, 4);
	return {
		type: "stored",
		parentHash,
		blocks: sequenceHashes.map((blockHash, i) => ({ blockHash, tokensHash: tokensHashes[i]! })),
		tokenIds: tokens.slice(0, sequenceHashes.length * 4),
		blockSize: 4,
	};
}

describe("a relay", () => {
	/** A router that keeps what it is told in a set. */
	const start = async (options: { replay?: boolean; blockSize?: number } = {}) => {
		const runtime = await DistributedRuntime.create({
			discoveryBackend: "mem",
			memStore: createMemStore(),
			shutdownGraceMs: 0,
			log: { filter: "off", format: "readable", ansi: false, localTime: false },
		});
		ends.push(() => runtime.shutdown());
		const [port, replayPort] = [await freePort(), await freePort()];
		const cache = new Set<bigint>();
		const workers = new Set<bigint>();
		const subscriber = await KvEventSubscriber.open(runtime, ENDPOINT, {
			onReset: () => cache.clear(),
			onWorkerGone: ({ workerId }) => {
				workers.delete(workerId);
				cache.clear();
			},
			onEvent: ({ workerId, data }: RouterEvent) => {
				workers.add(workerId);
				if (data.type === "stored") for (const { blockHash } of data.blocks) cache.add(blockHash);
				else if (data.type === "removed") for (const hash of data.blockHashes) cache.delete(hash);
				else cache.clear();
			},
		});
		ends.push(() => subscriber.close());
		const relay = await relayKvEvents(runtime, {
			engineEndpoint: `tcp://127.0.0.1:${port}`,
			...(options.replay === false ? {} : { replayEndpoint: `tcp://127.0.0.1:${replayPort}` }),
			endpoint: ENDPOINT,
			workerId: 42n,
			blockSize: options.blockSize ?? 4,
		});
		ends.push(() => relay.close());
		const engine = (replayTopic = false): Promise<EngineSocket> =>
			EngineSocket.open({
				endpoint: `tcp://127.0.0.1:${port}`,
				replayEndpoint: `tcp://127.0.0.1:${replayPort}`,
				replayTopic,
			});
		return { runtime, relay, cache, workers, port, engine };
	};
	const hashesOf = (from: number, to: number): bigint[] =>
		Array.from({ length: to - from }, (_, i) => stored([from + i, 0, 0, 0]).blocks[0]!.blockHash);
	const same = (cache: Set<bigint>, hashes: readonly bigint[]): boolean =>
		cache.size === hashes.length && hashes.every((hash) => cache.has(hash));

	it("that is younger than the engine asks for what went before; an engine that begins anew is forgotten first", async () => {
		const { relay, cache, workers, engine } = await start();
		const first = await engine();
		// Nobody listens yet, or perhaps somebody does: either way all of it must come.
		for (let i = 0; i < 5; i++) first.publish([stored([i, 0, 0, 0])]);
		let count = 5;
		await until("the relay hears the engine", () => {
			first.publish([stored([count++, 0, 0, 0])]);
			return relay.batches > 0;
		});
		await until("all blocks", () => same(cache, hashesOf(0, count)));
		expect([...workers]).toEqual([42n]);
		expect(relay.lost).toBe(0);
		await first.close();

		const second = await engine(true);
		ends.push(() => second.close());
		let next = 1000;
		const before = relay.batches;
		await until("the relay hears the new engine", () => {
			second.publish([stored([next++, 0, 0, 0])]);
			return relay.batches > before;
		});
		await until("the new blocks and no others", () => same(cache, hashesOf(1000, next)));
		second.publish([{ type: "cleared" }, stored([1, 2, 3, 4])]);
		await until("the clear", () => cache.size === 1);
		await relay.close();
		await until("the worker is gone", () => workers.size === 0 && cache.size === 0);
	});

	it("without a replay socket a lost batch means that nothing is known any more", async () => {
		const { relay, cache, port, runtime } = await start({ replay: false });
		const zmq = await loadZmq();
		const socket = new zmq.Publisher({ linger: 0 });
		await socket.bind(`tcp://127.0.0.1:${port}`);
		ends.push(async () => socket.close());
		const send = (sequence: bigint, events: KvCacheEvent[]) =>
			socket.send(["any", encodeVllmSequence(sequence), encodeVllmBatch(1, events, 0)]);
		let sequence = 0n;
		while (relay.batches === 0) {
			await send(sequence, [stored([Number(sequence), 0, 0, 0])]);
			sequence++;
			await new Promise((resolve) => setTimeout(resolve, 10));
		}
		await until("the first blocks", () => cache.size > 0);
		await send(sequence + 3n, [stored([9, 9, 9, 9])]);
		await until("only what came after the gap", () => relay.lost === 3 && cache.size === 1);
		expect(await runtime.metrics.scrape()).toMatch(/kv_publisher_engines_dropped_events_total\{[^}]*\} 3/);
		// Nonsense is counted and changes nothing.
		await socket.send(["any"]);
		await socket.send(["any", "short", "x"]);
		await socket.send(["any", encodeVllmSequence(sequence + 4n), Buffer.from([0xc1])]);
		// Another rank's blocks are not this worker's.
		await socket.send(["any", encodeVllmSequence(sequence + 5n), encodeVllmBatch(1, [stored([7, 7, 7, 7])], 1)]);
		await send(sequence + 6n, [stored([8, 8, 8, 8])]);
		await until("the next block", () => cache.size === 2);
		expect(relay.refused).toBe(3);
	});

	it("to an engine with blocks of another size fails, with both numbers", async () => {
		const { relay, engine, cache } = await start({ blockSize: 16 });
		const other = await engine();
		ends.push(() => other.close());
		let failure: Error | undefined;
		relay.failed.catch((error: Error) => {
			failure = error;
		});
		await until("the relay fails", () => {
			other.publish([stored([1, 2, 3, 4])]);
			return failure !== undefined;
		});
		expect(failure!.message).toMatch(/hold 4 tokens, those of the model card 16/);
		expect(cache.size).toBe(0);
	});

	it("refuses an endpoint that is none", async () => {
		const runtime = await DistributedRuntime.create({ discoveryBackend: "mem", memStore: createMemStore() });
		ends.push(() => runtime.shutdown());
		await expect(
			relayKvEvents(runtime, { engineEndpoint: "tcp://*:5557", endpoint: ENDPOINT, blockSize: 4 }),
		).rejects.toThrow(/must be tcp:\/\/host:port/);
	});
});

const model = testModel("gguf");
const missing = model.missing;

describe.skipIf(missing)(titled("the command", missing), () => {
	it("tells of a worker's engine, refuses another block size, and gives way when it ends", async () => {
		const fleet = new Fleet();
		ends.push(() => fleet.stop());
		const [port, replayPort] = [await freePort(), await freePort()];
		await fleet.mocker(model.path, "m", [
			"--block-size",
			"4",
			"--speedup-ratio",
			"0",
			"--zmq-kv-events-ports",
			String(port),
			"--zmq-replay-ports",
			String(replayPort),
		]);
		const runtime = await DistributedRuntime.create({
			discoveryBackend: "file",
			fileKvRoot: fleet.folder,
			systemPort: -1,
			events: { plane: "zmq", host: "127.0.0.1" },
			log: { filter: "off", format: "readable", ansi: false, localTime: false },
		});
		ends.push(() => runtime.shutdown());
		const endpoint = runtime.namespace("dynamo").component("backend").endpoint("generate");
		const client = await endpoint.client();
		const [worker] = await client.waitForInstances(10_000);
		const ask = (tokenIds: number[]): Promise<void> =>
			new Promise((resolve, reject) => {
				const payload = {
					model: "m",
					token_ids: tokenIds,
					stop_conditions: { max_tokens: 1, ignore_eos: true },
					sampling_options: {},
					output_options: {},
					eos_token_ids: [],
					annotations: [],
				};
				client.send(worker!, { id: `${tokenIds[0]}`, payload }, { onItem: () => {}, onEnd: resolve, onError: reject });
			});
		const cache = new Set<bigint>();
		const subscriber = await KvEventSubscriber.open(runtime, endpoint.id, {
			onReset: () => cache.clear(),
			onWorkerGone: () => cache.clear(),
			onEvent: ({ data }) => {
				if (data.type === "stored") for (const { blockHash } of data.blocks) cache.add(blockHash);
				else if (data.type === "removed") for (const hash of data.blockHashes) cache.delete(hash);
				else cache.clear();
			},
		});
		ends.push(() => subscriber.close());
		const prompt = (number: number) => Array.from({ length: 9 }, (_, i) => 100 * number + i);
		const holds = (...numbers: number[]) => {
			const wanted = numbers.flatMap((number) => blockHashes(prompt(number), 4).sequenceHashes);
			return cache.size === wanted.length && wanted.every((hash) => cache.has(hash));
		};
		await ask(prompt(1));
		await until("what the worker itself tells", () => holds(1));

		const args = ["kv-events-relay", "--engine-endpoint", `tcp://127.0.0.1:${port}`];
		const refused = fleet.start([...args, "--block-size", "16"]);
		expect((await refused.exited).code).toBe(2);
		expect(refused.stderr).toMatch(/--block-size 16 is not that of the model card: m has blocks of 4 tokens/);
		const unknown = fleet.start([...args, "--worker-id", "0x5"]);
		expect((await unknown.exited).code).toBe(2);

		// From now on the relay, being the newer one, speaks for the worker; it has asked for what went before.
		const relay = fleet.start([...args, "--replay-endpoint", `tcp://127.0.0.1:${replayPort}`]);
		await relay.waitForOutput(/the relay tells routers of m at worker \d+/);
		await until("two sources", async () => (await runtime.discovery.list("v1/event_sources")).length === 2);
		await ask(prompt(2));
		await until("what the relay tells", () => holds(1, 2));
		expect((await relay.stop()).code).toBe(0);
		await until("one source", async () => (await runtime.discovery.list("v1/event_sources")).length === 1);
		await ask(prompt(3));
		await until("what the worker itself tells again", () => holds(1, 2, 3));
	}, 60_000);
});
