// SPDX-License-Identifier: Apache-2.0
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type PolicyClass, PolicyProfile, type QueueOrder } from "./policy-profile.js";
import { RequestQueue, type Waiting, type WaitingFacts } from "./request-queue.js";

const facts = (more: Partial<WaitingFacts> = {}): WaitingFacts => ({
	promptTokens: 100,
	cachedTokens: 0,
	strictPriority: 0,
	priorityJump: 0,
	lane: "",
	...more,
});

function profile(...classes: (Partial<PolicyClass> & { order?: QueueOrder })[]): PolicyProfile {
	const all = classes.map((one, i) => ({ name: `c${i}`, order: "fcfs" as const, quantum: 100, ...one }));
	return new PolicyProfile(all, new Map(all.map(({ name }, i) => [name, i])), new Map(), "", [{ minTokens: 0 }]);
}

function drain<T>(queue: RequestQueue<T>, canGo: (waiting: Waiting<T>) => boolean = () => true): T[] {
	const out: T[] = [];
	for (let next = queue.take(canGo); next !== undefined; next = queue.take(canGo)) out.push(next.payload);
	return out;
}

describe("order within a class", () => {
	it("by arrival, a jump counting as seconds, a strict priority before all", () => {
		const queue = new RequestQueue<string>(profile({}));
		queue.add(0, facts(), "first", 0);
		queue.add(0, facts(), "second", 1000);
		queue.add(0, facts({ priorityJump: 5 }), "jumps 5 s", 4000);
		queue.add(0, facts({ strictPriority: 1 }), "strict", 9000);
		queue.add(0, facts({ strictPriority: 2 }), "stricter", 9500);
		expect(drain(queue)).toEqual(["stricter", "strict", "jumps 5 s", "first", "second"]);
	});

	it("shortest first, what is cached left out", () => {
		const queue = new RequestQueue<string>(profile({ order: "wspt" }));
		queue.add(0, facts({ promptTokens: 500 }), "long", 0);
		queue.add(0, facts({ promptTokens: 1000, cachedTokens: 990 }), "cached", 1);
		queue.add(0, facts({ promptTokens: 200 }), "short", 2);
		queue.add(0, facts({ promptTokens: 600, priorityJump: 5 }), "weighs more", 3);
		expect(drain(queue)).toEqual(["cached", "weighs more", "short", "long"]);
	});

	it("one that cannot go keeps those of its lane back, not the others", () => {
		const queue = new RequestQueue<string>(profile({}));
		queue.add(0, facts({ lane: "a" }), "a1", 0);
		queue.add(0, facts({ lane: "a" }), "a2", 1);
		queue.add(0, facts(), "b", 2);
		expect(drain(queue, ({ facts: { lane } }) => lane !== "a")).toEqual(["b"]);
		expect(queue.size).toBe(2);
		expect(drain(queue)).toEqual(["a1", "a2"]);
	});
});

describe("between classes", () => {
	it("service in proportion to the quanta, in tokens, not in requests", () => {
		const queue = new RequestQueue<number>(profile({ quantum: 300 }, { quantum: 100 }));
		for (let i = 0; i < 4000; i++) {
			queue.add(0, facts({ promptTokens: 1 + (i % 7) * 90 }), 0, i);
			queue.add(1, facts({ promptTokens: 1 + (i % 5) * 200 }), 1, i);
		}
		const served = [0, 0];
		for (let i = 0; i < 2000; i++) {
			const next = queue.take(() => true) as Waiting<number>;
			served[next.place] = (served[next.place] as number) + next.facts.promptTokens;
		}
		expect((served[0] as number) / (served[1] as number)).toBeCloseTo(3, 1);
	});

	it("a prompt much larger than its class's quantum gets its turn", () => {
		const queue = new RequestQueue<string>(profile({ quantum: 1 }, { quantum: 1000 }));
		queue.add(0, facts({ promptTokens: 50 }), "large", 0);
		for (let i = 0; i < 200; i++) queue.add(1, facts({ promptTokens: 1000 }), "small", i);
		const order = drain(queue);
		expect(order.indexOf("large")).toBeGreaterThan(0);
		expect(order.indexOf("large")).toBeLessThan(60);
	});

	it("a class without requests saves up nothing", () => {
		const queue = new RequestQueue<number>(profile({}, {}));
		for (let i = 0; i < 50; i++) queue.add(0, facts(), 0, i);
		for (let i = 0; i < 20; i++) queue.take(() => true);
		for (let i = 0; i < 30; i++) queue.add(1, facts(), 1, i);
		const next = drain(queue).slice(0, 20);
		expect(next.filter((place) => place === 1).length).toBeGreaterThanOrEqual(9);
		expect(next.filter((place) => place === 1).length).toBeLessThanOrEqual(11);
	});
});

it("limits are per worker; the first that is reached is told", () => {
	const queue = new RequestQueue<string>(profile({ requestLimit: 2, promptTokenLimit: 150, cachedTokenLimit: 10 }));
	expect(queue.fullAt(0, 1)).toBeUndefined();
	queue.add(0, facts({ promptTokens: 100, cachedTokens: 20 }), "a", 0);
	expect(queue.fullAt(0, 1)).toEqual({ kind: "cached tokens", current: 20, limit: 10 });
	expect(queue.fullAt(0, 3)).toBeUndefined();
	queue.add(0, facts(), "b", 0);
	expect(queue.fullAt(0, 1)).toEqual({ kind: "requests", current: 2, limit: 2 });
	expect(queue.fullAt(0, 0)?.limit).toBe(0);
});

it("loses no request, gives none twice, and counts what waits", () => {
	const request = fc.record({
		place: fc.nat({ max: 2 }),
		promptTokens: fc.integer({ min: 0, max: 5000 }),
		cachedTokens: fc.integer({ min: 0, max: 100 }),
		strictPriority: fc.nat({ max: 2 }),
		priorityJump: fc.nat({ max: 20 }),
		lane: fc.constantFrom("", "x", "y"),
	});
	const step = fc.oneof(
		{ weight: 4, arbitrary: request.map((add) => ({ add }) as const) },
		{ weight: 2, arbitrary: fc.constantFrom("", "x", "y").map((blocked) => ({ take: blocked }) as const) },
		{ weight: 1, arbitrary: fc.nat().map((remove) => ({ remove }) as const) },
		{ weight: 1, arbitrary: fc.nat({ max: 300 }).map((expire) => ({ expire }) as const) },
	);
	fc.assert(
		fc.property(fc.array(step, { maxLength: 300 }), (steps) => {
			const queue = new RequestQueue<number>(profile({}, { order: "wspt", quantum: 1 }, { quantum: 5000 }));
			const inside = new Map<number, Waiting<number>>();
			let id = 0;
			for (const [now, one] of steps.entries()) {
				if ("add" in one) {
					const { place, ...more } = one.add;
					inside.set(id, queue.add(place, more, id, now));
					id++;
				} else if ("take" in one) {
					const taken = queue.take(({ facts: { lane } }) => lane !== one.take);
					const could = [...inside.values()].filter(({ facts: { lane } }) => lane !== one.take);
					expect(taken === undefined).toBe(could.length === 0);
					if (taken === undefined) continue;
					expect(inside.delete(taken.payload)).toBe(true);
					// Nobody of its class that could go has a higher strict priority.
					const peers = could.filter(({ place }) => place === taken.place);
					const highest = Math.max(...peers.map(({ facts: { strictPriority } }) => strictPriority));
					expect(taken.facts.strictPriority).toBe(highest);
				} else if ("remove" in one) {
					const [victim] = [...inside.keys()].slice(one.remove % Math.max(1, inside.size));
					const waiting = victim === undefined ? undefined : inside.get(victim);
					if (waiting === undefined) continue;
					expect(queue.remove(waiting)).toBe(true);
					expect(queue.remove(waiting)).toBe(false);
					inside.delete(waiting.payload);
				} else {
					const old = queue.takeOlderThan(one.expire).map(({ payload }) => payload);
					const expected = [...inside.values()].filter(({ since }) => since < one.expire);
					expect(old.sort()).toEqual(expected.map(({ payload }) => payload).sort());
					for (const payload of old) inside.delete(payload);
				}
				expect(queue.size).toBe(inside.size);
				const tokens = [...inside.values()].reduce((sum, waiting) => sum + waiting.facts.promptTokens, 0);
				expect(queue.stats().reduce((sum, { promptTokens }) => sum + promptTokens, 0)).toBe(tokens);
			}
			expect(new Set(drain(queue))).toEqual(new Set(inside.keys()));
			expect(queue.stats().every((stats) => Object.values(stats).every((value) => value === 0))).toBe(true);
		}),
		{ numRuns: 200 },
	);
});
