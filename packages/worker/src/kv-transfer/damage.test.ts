// SPDX-License-Identifier: Apache-2.0
// Prompts that cannot be fetched because the workers differ, or because what passes between them is damaged on its way: the
// decode worker computes them, says why, and lives on.
import { connect, type Socket } from "node:net";
import fc from "fast-check";
import { afterEach, expect, test } from "vitest";
import {
	aggregatedWorker,
	ask,
	closeAll,
	listen,
	type Node,
	open,
	payload,
	prefill,
	prompt,
	start,
	untilIdle,
	withParams,
} from "../test-support/handover.js";
import { FRAME } from "./transfer-frames.js";

const aggregated = aggregatedWorker();
afterEach(closeAll);

type Result = Record<string, unknown>;

/** Has the decode worker answer with `result`. @returns why it computed the prompt; undefined: it did not. */
async function reasonOf(to: Node, request: Record<string, unknown>, result: unknown): Promise<string | undefined> {
	const before = await to.samples("kv_transfer_failures_total");
	const answer = await ask(to, { ...request, prefill_result: result }).answer;
	expect(answer.error).toBeUndefined();
	expect(answer.tokens).toEqual((await aggregated(request)).tokens);
	const after = await to.samples("kv_transfer_failures_total");
	const grown = [...after].filter(([labels, count]) => count !== (before.get(labels) ?? 0));
	expect(grown.length).toBeLessThan(2);
	return grown[0]?.[0].match(/reason="(\w+)"/)?.[1];
}

test.each([
	["other blocks", { blockSize: 16 }, 11, "mismatch"],
	["other weights", {}, 12, "mismatch"],
	["another type of keys and values", { kvCacheDtype: "fp16" }, 11, "mismatch"],
	["the same of all", {}, 11, undefined],
] as const)("a prefill worker that has %s", async (_what, options, seed, reason) => {
	const [from, to] = [await start("prefill", {}, options, "prefill", seed), await start("decode")];
	const request = payload(prompt(40, seed), 8);
	expect(await reasonOf(to, request, await prefill(from, request))).toBe(reason);
	await untilIdle(to);
});

test("whatever a frontend makes of kv_transfer_params", async () => {
	const [from, to] = [await start("prefill", { holdMs: 2000 }), await start("decode")];
	const names = ["version", "host", "port", "handle", "fingerprint", "tokens", "block_hashes", "tail_hash", "memory"];
	// Hosts are not made up: what is no address would be looked up.
	const value = fc.oneof(
		fc.constantFrom(null, true, -1, 0, 1.5, 2 ** 40, "", "x".repeat(300), [], {}, [1, {}], [["0"]], "00".repeat(16)),
		fc.jsonValue({ maxDepth: 1 }).filter((json) => typeof json !== "string"),
	);
	const mangle = fc.oneof(
		fc.record({ kind: fc.constant("drop" as const), name: fc.constantFrom(...names) }),
		fc.record({ kind: fc.constant("set" as const), name: fc.constantFrom(...names), value }),
		fc.record({ kind: fc.constant("cut" as const), at: fc.nat({ max: 400 }) }),
		fc.record({ kind: fc.constant("whole" as const), value }),
	);
	let seed = 100;
	const seen = new Set<string | undefined>();
	await fc.assert(
		fc.asyncProperty(mangle, async (change) => {
			const request = payload(prompt(40, seed++), 3);
			const result: Result = await prefill(from, request);
			const { kv_transfer_params: params } = result.disaggregated_params as { kv_transfer_params: Result };
			let carried: unknown = { kv_transfer_params: params };
			if (change.kind === "drop") carried = { kv_transfer_params: { ...params, [change.name]: undefined } };
			if (change.kind === "set") carried = { kv_transfer_params: { ...params, [change.name]: change.value } };
			if (change.kind === "cut") carried = JSON.stringify(carried).slice(0, change.at);
			if (change.kind === "whole") carried = { kv_transfer_params: change.value };
			seen.add(await reasonOf(to, request, { ...result, disaggregated_params: JSON.parse(JSON.stringify(carried)) }));
		}),
		{ numRuns: 40 },
	);
	for (const reason of seen) {
		expect([undefined, "not_held", "not_ours", "mismatch", "prompt", "refused", "unreachable"]).toContain(reason);
	}
	expect(seen).toContain("not_ours");
	await untilIdle(to, from);
});

interface Damage {
	/** Which of the bytes that the prefill worker sends, the share of all of them. */
	readonly at: number;
	readonly kind: "flip" | "drop" | "insert" | "cut";
	readonly byte: number;
}

/** A connection to the prefill worker on which it is damaged what comes back. */
function damaged(port: number, size: number, { at, kind, byte }: Damage): Promise<number> {
	return listen((near: Socket) => {
		const far = connect({ host: "127.0.0.1", port });
		const place = Math.floor(at * size);
		let passed = 0;
		near.pipe(far);
		far.on("data", (chunk: Buffer) => {
			const i = place - passed;
			passed += chunk.length;
			if (i < 0 || i >= chunk.length) {
				near.write(chunk);
				return;
			}
			if (kind === "flip") chunk[i]! ^= byte;
			const [head, tail] = [chunk.subarray(0, i), chunk.subarray(i)];
			near.write(head);
			if (kind === "cut") near.destroy();
			else if (kind === "drop") near.write(tail.subarray(1));
			else near.write(kind === "insert" ? Buffer.concat([Buffer.from([byte]), tail]) : tail);
		});
		far.on("error", () => near.destroy());
		far.on("close", () => near.end());
		near.on("close", () => far.destroy());
	});
}

/** Bytes that a decode worker is sent for a prompt of 45 tokens. */
const bytesOf = ({ engine }: Node) => 9 + 6 * (13 + engine.kv!.layout.blockBytes) + 5;
let seed = 200;

/** Has a prompt fetched over such a connection. @returns why it was computed; undefined: it was not. */
async function reasonOfDamage(from: Node, to: Node, how: Damage): Promise<string | undefined> {
	const request = payload(prompt(45, seed++), 3);
	const result = await prefill(from, request);
	const { port } = (result.disaggregated_params as { kv_transfer_params: { port: number } }).kv_transfer_params;
	const through = await damaged(port, bytesOf(to), how);
	const reason = await reasonOf(to, request, withParams(result, { port: through }));
	await open.pop()!.close();
	return reason;
}

test("a damaged block is found out", async () => {
	const [from, to] = [await start("prefill", { sharedMemory: false }), await start("decode")];
	expect(await reasonOfDamage(from, to, { at: 0.5, kind: "flip", byte: 1 })).toBe("damaged");
	await untilIdle(to, from);
});

test("whatever is damaged on the way", async () => {
	// What lacks a byte is only noticed by the time that it takes.
	const [from, to] = [
		await start("prefill", { sharedMemory: false, holdMs: 5000 }),
		await start("decode", { timeoutMs: 300 }),
	];
	const size = bytesOf(to);
	const seen = new Set<string | undefined>();
	const damage = fc.record({
		// Half of the time near the beginning, where the frames' heads are.
		at: fc.oneof(
			fc.double({ min: 0, max: 0.999, noNaN: true }),
			fc.integer({ min: 0, max: 40 }).map((i) => i / size),
		),
		kind: fc.constantFrom("flip" as const, "drop" as const, "insert" as const, "cut" as const),
		byte: fc.integer({ min: 1, max: 255 }),
	});
	await fc.assert(
		fc.asyncProperty(damage, async (how) => {
			const reason = await reasonOfDamage(from, to, how);
			// The last byte of all that is sent says nothing, nor does one more behind it.
			if (reason !== undefined) seen.add(reason);
			else expect(how.at * size).toBeGreaterThan(size - 6);
		}),
		// The type of the first frame, which says yes, becomes that which says no.
		{ numRuns: 40, examples: [[{ at: 4.5 / size, kind: "flip", byte: FRAME.accept ^ FRAME.refuse }]] },
	);
	for (const reason of seen) expect(["damaged", "protocol", "lost", "timeout", "refused"]).toContain(reason);
	await untilIdle(to, from);
});
