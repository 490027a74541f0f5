// SPDX-License-Identifier: Apache-2.0
import type { EndpointRecord } from "@dynamo-ts/protocols/internal";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
	ActiveRequests,
	createRouter,
	DirectPolicy,
	LeastLoadedPolicy,
	ROUTER_MODES,
	RoundRobinPolicy,
} from "./internal.js";
import { workerRecord } from "./test-support/worker-record.js";

function instances(count: number): EndpointRecord[] {
	return Array.from({ length: count }, (_, i) => workerRecord(0xffff_ffff_ffff_0000n + BigInt(i)));
}

function random(seed: number): () => number {
	let state = seed;
	return () => {
		state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
		return state / 2 ** 32;
	};
}

const REQUEST = { tokenIds: [] };
const KV = { workers: { blockSize: 16, firstRank: 0, rankCount: 1, publishEvents: true } };
/** Those that pick. */
const PICKING = ROUTER_MODES.filter((mode) => mode !== "direct");

describe("every policy", () => {
	it.each(PICKING)("%s answers undefined without candidates, the only one when there is one", (mode) => {
		const router = createRouter(mode, KV);
		const [only] = instances(1);
		expect(router.name).toBe(mode);
		expect(router.pick([], REQUEST)).toBeUndefined();
		for (let i = 0; i < 5; i++) expect(router.pick([only as EndpointRecord], REQUEST)).toBe(only);
	});

	it.each(PICKING)("%s leaves nobody without work and overloads nobody", (mode) => {
		const router = createRouter(mode, KV);
		const list = instances(8);
		const counts = new Map<bigint, number>();
		const sent: bigint[] = [];
		for (let i = 0; i < 4000; i++) {
			const picked = router.pick(list, REQUEST) as EndpointRecord;
			counts.set(picked.instance_id, (counts.get(picked.instance_id) ?? 0) + 1);
			router.onStart?.(picked.instance_id, String(i), REQUEST);
			sent.push(picked.instance_id);
			if (i >= 16) router.onEnd?.(sent[i - 16] as bigint, String(i - 16));
		}
		expect(counts.size).toBe(8);
		expect(Math.max(...counts.values()) / 500).toBeLessThan(1.5);
	});

	it("an unknown name is refused with the known ones", () => {
		expect(() => createRouter("best", KV)).toThrow(/round-robin, random, power-of-two, least-loaded, kv, direct/);
	});
});

describe("direct", () => {
	it("picks nobody and says why", () => {
		const router = new DirectPolicy();
		expect(router.pick()).toBeUndefined();
		expect(router.refusal()).toMatchObject({ errorClass: "InvalidArgument" });
	});
});

describe("round-robin", () => {
	it("is exact within one over any number of instances and requests", () => {
		fc.assert(
			fc.property(fc.integer({ min: 1, max: 20 }), fc.integer({ min: 1, max: 500 }), (n, requests) => {
				const router = new RoundRobinPolicy();
				const list = instances(n);
				const counts = new Map(list.map((instance) => [instance, 0]));
				for (let i = 0; i < requests; i++) {
					const picked = router.pick(list) as EndpointRecord;
					counts.set(picked, (counts.get(picked) ?? 0) + 1);
				}
				expect(Math.max(...counts.values()) - Math.min(...counts.values())).toBeLessThanOrEqual(1);
			}),
		);
	});

	it("goes on when instances come and go", () => {
		const router = new RoundRobinPolicy();
		const list = instances(4);
		for (let i = 0; i < 3; i++) router.pick(list);
		const fewer = list.slice(0, 2);
		const picked = [router.pick(fewer), router.pick(fewer), router.pick(fewer), router.pick(fewer)];
		expect(picked.filter((instance) => instance === fewer[0])).toHaveLength(2);
		expect(new Set(Array.from({ length: 4 }, () => router.pick(list))).size).toBe(4);
	});
});

describe("least-loaded", () => {
	it("prefers the idle one and breaks ties at random", () => {
		const router = new LeastLoadedPolicy(random(7));
		const list = instances(3);
		router.onStart((list[0] as EndpointRecord).instance_id, "a");
		const picked = new Map<EndpointRecord, number>();
		for (let i = 0; i < 300; i++) {
			const instance = router.pick(list) as EndpointRecord;
			picked.set(instance, (picked.get(instance) ?? 0) + 1);
		}
		expect(picked.has(list[0] as EndpointRecord)).toBe(false);
		expect(picked.get(list[1] as EndpointRecord)).toBeGreaterThan(100);
		expect(picked.get(list[2] as EndpointRecord)).toBeGreaterThan(100);
	});
});

describe("active requests", () => {
	it("after any run in which all requests ended, nothing is left", () => {
		const step = fc.record({
			instance: fc.bigInt(0n, 3n),
			request: fc.integer({ min: 0, max: 20 }),
			end: fc.boolean(),
		});
		fc.assert(
			fc.property(fc.array(step), (steps) => {
				const active = new ActiveRequests();
				const open = new Set<string>();
				for (const { instance, request, end } of steps) {
					const key = `${instance} ${request}`;
					if (end) {
						active.remove(instance, String(request));
						open.delete(key);
					} else {
						active.add(instance, String(request));
						open.add(key);
					}
				}
				for (let i = 0n; i <= 3n; i++) {
					expect(active.count(i)).toBe([...open].filter((key) => key.startsWith(`${i} `)).length);
				}
				for (const key of open) {
					const [instance, request] = key.split(" ") as [string, string];
					active.remove(BigInt(instance), request);
				}
				expect(active.size).toBe(0);
			}),
		);
	});
});
