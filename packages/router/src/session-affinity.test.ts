// SPDX-License-Identifier: Apache-2.0
import { readFileSync } from "node:fs";
import {
	decodeSessionAffinity,
	type EventEnvelope,
	encodeSessionAffinity,
	SESSION_AFFINITY_TOPIC,
} from "@dynamo-ts/protocols/internal";
import { createMemStore, DistributedRuntime } from "@dynamo-ts/runtime";
import fc from "fast-check";
import { afterEach, describe, expect, it, vi } from "vitest";
import { SessionAffinity } from "./session-affinity.js";

const ENDPOINT = { namespace: "n", component: "c", name: "generate" };
const SCOPE = { kind: "endpoint", endpoint: ENDPOINT } as const;

describe("a session", () => {
	it("stays with its worker while it has requests, and for the time limit after", () => {
		let now = 0;
		const affinity = new SessionAffinity({ ttlMs: 1000, mode: "hard" }, () => now);
		expect(affinity.boundTo("s")).toBeUndefined();
		affinity.begin("s", 7n, 1);
		now = 50_000;
		expect(affinity.boundTo("s")).toMatchObject({ workerId: 7n, dpRank: 1 });
		affinity.end("s");
		now += 1000;
		expect(affinity.boundTo("s")).toBeDefined();
		now += 1;
		expect(affinity.boundTo("s")).toBeUndefined();
		expect(affinity.size).toBe(0);
	});

	it("is free when its worker is gone", () => {
		const affinity = new SessionAffinity({ ttlMs: 1000, mode: "hard" });
		affinity.begin("s", 7n, 0);
		affinity.begin("t", 8n, 0);
		affinity.forget(7n);
		expect([affinity.boundTo("s"), affinity.boundTo("t")?.workerId]).toEqual([undefined, 8n]);
	});

	it("has a name of limited length", () => {
		const affinity = new SessionAffinity({ ttlMs: 1000, mode: "hard" });
		expect(() => affinity.check("é".repeat(513))).toThrow(/longer than 1024 bytes/);
		affinity.check("é".repeat(512));
	});

	it("those that are idle make room, the oldest first", () => {
		let now = 0;
		const affinity = new SessionAffinity({ ttlMs: 1000, mode: "hard" }, () => now);
		for (let i = 0; i < 10; i++) {
			affinity.begin(`s${i}`, 1n, 0);
			affinity.end(`s${i}`);
		}
		now = 2000;
		affinity.begin("new", 1n, 0);
		expect(affinity.size).toBe(1);
	});
});

describe("between frontends", () => {
	const runtimes: DistributedRuntime[] = [];
	const affinities: SessionAffinity[] = [];
	afterEach(async () => {
		for (const affinity of affinities.splice(0)) await affinity.close();
		for (const runtime of runtimes.splice(0).reverse()) await runtime.shutdown();
	});

	const memStore = () => {
		const store = createMemStore();
		return async (isMember: (id: bigint) => boolean = () => true) => {
			const runtime = await DistributedRuntime.create({
				discoveryBackend: "mem",
				memStore: store,
				systemPort: -1,
				log: { filter: "off", format: "readable", ansi: false, localTime: false },
			});
			runtimes.push(runtime);
			const affinity = new SessionAffinity({ ttlMs: 60_000, mode: "hard" });
			affinities.push(affinity);
			await affinity.open(runtime, ENDPOINT, isMember);
			return { runtime, affinity };
		};
	};

	it("a binding is known to all; the latest holds", async () => {
		const join = memStore();
		const [a, b] = [await join(), await join((id) => id !== 9n)];
		a.affinity.begin("s", 7n, 0);
		await vi.waitFor(() => expect(b.affinity.boundTo("s")?.workerId).toBe(7n));
		b.affinity.begin("s", 8n, 2);
		await vi.waitFor(() => expect(a.affinity.boundTo("s")).toMatchObject({ workerId: 8n, dpRank: 2 }));
		a.affinity.begin("t", 9n, 0);
		a.affinity.begin("u", 7n, 0);
		await vi.waitFor(() => expect(b.affinity.boundTo("u")).toBeDefined());
		expect(b.affinity.boundTo("t")).toBeUndefined();
	});

	it("sends what Dynamo sends: once with the request, and the same again with its end", async () => {
		const { runtime, affinity } = await memStore()();
		const seen: EventEnvelope[] = [];
		await runtime.events.subscribe(SCOPE, SESSION_AFFINITY_TOPIC, { onEvent: (envelope) => void seen.push(envelope) });
		affinity.begin("s", 7n, 0);
		affinity.end("s");
		affinity.begin("s", 7n, 0);
		await vi.waitFor(() => expect(seen).toHaveLength(3));
		const [first, second, third] = seen.map(({ payload }) => decodeSessionAffinity(payload));
		expect(first).toMatchObject({ sessionId: "s", workerId: 7n, dpRank: 0, writerId: runtime.instanceId });
		expect(second).toEqual(first);
		expect(third).toEqual(first);
	});

	it("takes what Dynamo sent", async () => {
		const { runtime, affinity } = await memStore()();
		const publisher = await runtime.events.createPublisher(SCOPE, SESSION_AFFINITY_TOPIC);
		const path = new URL("../../protocols/fixtures/kv/replica_sync_and_affinity_frames.jsonl", import.meta.url);
		const frames = readFileSync(path, "utf8").trim().split("\n");
		const recorded = frames.map((line) => JSON.parse(line) as { channel_topic: string; frames_hex: string[] });
		const own = recorded.filter(({ channel_topic }) => channel_topic === SESSION_AFFINITY_TOPIC);
		expect(own.length).toBeGreaterThan(1);
		const payload = encodeSessionAffinity({
			sessionId: "sess-1",
			workerId: 11606076479708926225n,
			dpRank: 0,
			sequence: 1795422736584598862n,
			writerId: 8580703658543644511n,
		});
		// The recorded payload ends the recorded envelope.
		expect(own[0]?.frames_hex[3]?.endsWith(payload.toString("hex"))).toBe(true);
		publisher.publish(payload);
		await vi.waitFor(() => expect(affinity.boundTo("sess-1")?.workerId).toBe(11606076479708926225n));
	});

	it("all keep the same binding, whatever the order in which they hear", async () => {
		const join = memStore();
		const { runtime } = await join();
		const publisher = await runtime.events.createPublisher(SCOPE, SESSION_AFFINITY_TOPIC);
		const binding = fc.record({
			workerId: fc.bigInt(1n, 3n),
			sequence: fc.bigInt(1n, 4n),
			writerId: fc.bigInt(1n, 3n),
		});
		let session = 0;
		const { affinity } = await join();
		await fc.assert(
			fc.asyncProperty(
				fc.uniqueArray(binding, { minLength: 1, maxLength: 6, selector: (b) => `${b.sequence}/${b.writerId}` }),
				async (bindings) => {
					const sessionId = `p${session++}`;
					const last = bindings.reduce((a, b) =>
						b.sequence > a.sequence || (b.sequence === a.sequence && b.writerId > a.writerId) ? b : a,
					);
					for (const one of bindings) publisher.publish(encodeSessionAffinity({ sessionId, dpRank: 0, ...one }));
					await vi.waitFor(() => expect(affinity.boundTo(sessionId)?.workerId).toBe(last.workerId), { interval: 1 });
				},
			),
			{ numRuns: 30 },
		);
	});
});
