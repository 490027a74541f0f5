// SPDX-License-Identifier: Apache-2.0
// Our frontend in the router mode kv before our mockers, in one process: the holder of a prefix gets the request.
import type { Frontend } from "@dynamo-ts/frontend";
import { KvEventSubscriber } from "@dynamo-ts/router";
import { sendPrompt, until } from "@dynamo-ts/testing/internal";
import { afterEach, beforeEach, expect, it } from "vitest";
import { ENDPOINT, OneProcess } from "./one-process.js";

let world: OneProcess;

beforeEach(() => {
	world = new OneProcess();
});
afterEach(() => world.end());

async function startOurFrontend(): Promise<Frontend> {
	const frontend = await world.frontend(await world.runtime(), "kv");
	await frontend.waitForModel("m", 10_000);
	return frontend;
}

it("the holder of a prefix gets the request, from a frontend that came later too", async () => {
	for (let i = 0; i < 4; i++) await world.mocker(await world.runtime(), 1024, "m", ENDPOINT.component);
	const frontend = await startOurFrontend();
	const stored = new Set<bigint>();
	const witness = await KvEventSubscriber.open(await world.runtime(), ENDPOINT, {
		onReset: () => {},
		onWorkerGone: () => {},
		onEvent: ({ data }) => {
			if (data.type === "stored") for (const { tokensHash } of data.blocks) stored.add(tokensHash);
		},
	});
	world.onEnd(() => witness.close());

	let state = 1;
	const token = (): number => {
		state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
		return Math.floor((state / 2 ** 32) * 300);
	};
	const prompts = Array.from({ length: 12 }, () => Array.from({ length: 160 }, token));
	const holders: bigint[] = [];
	for (const [p, prompt] of prompts.entries()) {
		const { worker, cached } = await sendPrompt(frontend.address, "m", prompt);
		expect(cached).toBe(0);
		holders.push(worker);
		await until("the events of the prompt", () => stored.size >= (p + 1) * 10);
	}
	expect(new Set(holders).size).toBeGreaterThan(1);
	for (let round = 0; round < 3; round++) {
		for (const [p, prompt] of prompts.entries()) {
			// The last token is always computed, so the last block does not count.
			expect(await sendPrompt(frontend.address, "m", prompt)).toEqual({ worker: holders[p], cached: 144 });
		}
	}
	const late = await startOurFrontend();
	for (const [p, prompt] of prompts.entries()) {
		expect(await sendPrompt(late.address, "m", prompt)).toEqual({ worker: holders[p], cached: 144 });
	}
}, 60_000);
