// SPDX-License-Identifier: Apache-2.0
// Our choices by cache and load against those of the real selection service, under live load.
import { blockHashes } from "@dynamo-ts/protocols/internal";
import { type CostWeights, DEFAULT_COST_WEIGHTS, KvScheduler } from "@dynamo-ts/router/internal";
import { Child, findRealDynamo, freePort, titled, until } from "@dynamo-ts/testing/internal";
import { EngineSocket } from "@dynamo-ts/worker/internal";
import { afterEach, test as base, expect } from "vitest";

const peer = findRealDynamo();
const missing = peer.missing;
const python = peer.path;
const test = missing ? base.skip : base;
const BLOCK_SIZE = 16;
const WORKERS = 4;
const DECISIONS = 1000;
const ends: (() => Promise<unknown> | unknown)[] = [];

afterEach(async () => {
	for (const end of ends.splice(0).reverse()) await end();
});

function seeded(seed: number): () => number {
	let state = seed;
	return () => {
		state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
		return state / 2 ** 32;
	};
}

/** What of the service's answer is compared. */
interface Selection {
	readonly worker_id: number;
	readonly overlap: { readonly gpu: number };
	readonly effective_prefill_tokens: number;
}

/** How many blocks each worker holds of a prompt. */
interface Scores {
	readonly workers: readonly { readonly worker_id: number; readonly device_blocks: number }[];
}

async function startService(weights: CostWeights): Promise<{
	call(method: string, path: string, body?: unknown): Promise<unknown>;
	engines: EngineSocket[];
}> {
	const port = await freePort();
	const env = {
		DYN_LOG: "error",
		DYN_ROUTER_KV_OVERLAP_SCORE_CREDIT: String(weights.overlapScoreCredit),
		DYN_ROUTER_KV_OVERLAP_SCORE_CREDIT_DECAY: String(weights.overlapScoreCreditDecay),
		DYN_ROUTER_PREFILL_LOAD_SCALE: String(weights.prefillLoadScale),
		DYN_ROUTER_DECODE_ACTIVE_REQUEST_WEIGHT: String(weights.decodeActiveRequestWeight),
	};
	const child = new Child(python, ["-m", "dynamo.select_service", "--port", String(port), "--threads", "1"], { env });
	ends.push(() => child.stop(5000));
	const url = `http://127.0.0.1:${port}`;
	const up = async (): Promise<boolean> => {
		try {
			return (await fetch(`${url}/health`, { signal: AbortSignal.timeout(2000) })).ok;
		} catch {
			return false;
		}
	};
	await until("the service is up", up, { timeoutMs: 30_000, child });
	const call = async (method: string, path: string, body?: unknown): Promise<unknown> => {
		const answer = await fetch(`${url}${path}`, {
			method,
			...(body === undefined ? {} : { headers: { "content-type": "application/json" }, body: JSON.stringify(body) }),
			signal: AbortSignal.timeout(10_000),
		});
		const text = await answer.text();
		expect(answer.ok, `${method} ${path}: ${answer.status} ${text}`).toBe(true);
		return text === "" ? undefined : JSON.parse(text);
	};
	const engines: EngineSocket[] = [];
	for (let id = 1; id <= WORKERS; id++) {
		const endpoint = `tcp://127.0.0.1:${await freePort()}`;
		const engine = await EngineSocket.open({ endpoint, topic: "" });
		ends.push(() => engine.close());
		engines.push(engine);
		await call("POST", "/workers", {
			worker_id: id,
			model_name: "m",
			endpoint: `http://127.0.0.1:1${id}`,
			block_size: BLOCK_SIZE,
			max_num_batched_tokens: 8192,
			kv_events_endpoints: { "0": endpoint },
		});
	}
	// Subscriptions are on their way for a moment.
	await new Promise((resolve) => setTimeout(resolve, 1000));
	return { call, engines };
}

const OTHER: CostWeights = {
	...DEFAULT_COST_WEIGHTS,
	overlapScoreCredit: 0.8,
	overlapScoreCreditDecay: 1.5,
	prefillLoadScale: 0.5,
	decodeActiveRequestWeight: 3,
};

test.each<[string, CostWeights, number]>([
	["the default weights", DEFAULT_COST_WEIGHTS, 7],
	["other weights", OTHER, 9],
])(
	titled(`${DECISIONS} choices with %s equal those of the real service`, missing),
	async (_name, weights, seed) => {
		const { call, engines } = await startService(weights);
		const random = seeded(seed);
		const token = (): number => Math.floor(random() * 30_000);
		const prefixes = Array.from({ length: 12 }, () => Array.from({ length: 320 }, token));
		const scheduler = new KvScheduler({ blockSize: BLOCK_SIZE, weights });
		const slots = engines.map((_, i) => scheduler.slots.obtain(BigInt(i + 1), 0));
		const live: string[] = [];
		let cached = 0;
		for (let n = 0; n < DECISIONS; n++) {
			while (live.length > 10 + random() * 40) {
				const [id] = live.splice(Math.floor(random() * live.length), 1) as [string];
				await call("DELETE", `/reservations/${id}`);
				scheduler.active.free(id);
			}
			const ready = live[Math.floor(random() * live.length * 2)];
			if (ready !== undefined) {
				await call("POST", `/reservations/${ready}/prefill_complete`);
				scheduler.active.prefillDone(ready);
			}
			const prefix = prefixes[Math.floor(random() * prefixes.length)] as number[];
			const tokens = [
				...prefix.slice(0, Math.floor(random() * 320)),
				...Array.from({ length: 1 + Math.floor(random() * 200) }, token),
			];
			const request = { promptTokens: tokens.length, ...blockHashes(tokens, BLOCK_SIZE) };
			const id = `r${n}`;
			const real = (await call("POST", "/select_and_reserve", {
				model_name: "m",
				token_ids: tokens,
				selection_id: id,
			})) as Selection;
			const slot = slots[real.worker_id - 1] as number;
			// Of equal workers either side takes any: ask until ours is theirs.
			let choice = scheduler.choose(request, slots);
			for (let i = 0; i < 50 && choice?.slot !== slot; i++) choice = scheduler.choose(request, slots);
			if (choice === undefined) throw new Error("nobody was chosen");
			expect({
				n,
				slot: choice.slot,
				cached: choice.overlapBlocks * BLOCK_SIZE,
				left: choice.effectivePrefillTokens,
			}).toEqual({ n, slot, cached: real.overlap.gpu, left: real.effective_prefill_tokens });
			if (choice.overlapBlocks > 0) cached++;
			scheduler.admit(id, slot, request, choice.effectivePrefillTokens, n);
			live.push(id);
			if (random() < 0.3) {
				const { tokensHashes, sequenceHashes } = request;
				const blocks = tokensHashes.map((tokensHash, i) => ({ tokensHash, blockHash: sequenceHashes[i] as bigint }));
				if (blocks.length === 0) continue;
				scheduler.tree.apply(slot, "device", { type: "stored", parentHash: undefined, blocks });
				const tokenIds = tokens.slice(0, blocks.length * BLOCK_SIZE);
				const stored = { type: "stored" as const, parentHash: undefined, blocks, tokenIds, blockSize: BLOCK_SIZE };
				(engines[real.worker_id - 1] as EngineSocket).publish([stored]);
				const held = async (): Promise<boolean> => {
					const scores = (await call("POST", "/overlap_scores", { model_name: "m", token_ids: tokens })) as Scores;
					return scores.workers.some((one) => one.worker_id === real.worker_id && one.device_blocks >= blocks.length);
				};
				await until("the service has taken the event in", held);
			}
		}
		expect(cached).toBeGreaterThan(DECISIONS / 4);
	},
	120_000,
);
