// SPDX-License-Identifier: Apache-2.0
// Requests that wait for their turn (`--router-queue-threshold`) before prefill workers, with and without meetings.
import type { PreprocessedRequest } from "@dynamo-ts/protocols/internal";
import { PolicyProfile } from "@dynamo-ts/router";
import { http } from "@dynamo-ts/testing/internal";
import { afterEach, describe, expect, it } from "vitest";
import type { FrontendConfig } from "./config.js";
import { type Script, type ScriptedCall, sendAll } from "./scripted-worker.js";
import { BYPASS, bodies, closeStack, gone, IDS, prefilled, stack, start } from "./test-support/pair.js";
import { MODEL, type Stack } from "./test-support/stack.js";

afterEach(closeStack);

/** A prompt of 64 tokens that no other shares; prefill workers compute 512 in a step. */
const complete = (i: number, signal?: AbortSignal) =>
	http((stack as Stack).completions, {
		body: { model: MODEL, prompt: Array.from({ length: 64 }, (_, at) => 60 + ((at * 7 + i) % 30)), max_tokens: 3 },
		...(signal === undefined ? {} : { signal }),
	});
const CONFIG = {
	routerMode: "kv",
	// One prompt of 64 tokens makes a worker busy.
	kvRouter: { useKvEvents: false, profile: PolicyProfile.single("fcfs", 0.1) } as unknown as FrontendConfig["kvRouter"],
} satisfies Partial<FrontendConfig>;

const waiting = async () =>
	(await (stack as Stack).metrics()).sum("dynamo_frontend_router_queue_pending_requests", { worker_type: "prefill" });

describe.each([
	["meetings", [18_900]],
	["one leg after the other", []],
])("before a busy prefill worker, with %s", (_how, ports) => {
	const meets = ports.length > 0;

	/** The first request is at the prefill worker, the others wait. */
	async function queue(count: number, prefillScripts = 1, decodeScript: Script = sendAll(IDS)) {
		const held: ScriptedCall[] = [];
		const scripts: Script[] = Array.from({ length: prefillScripts }, () => (call) => void held.push(call));
		// A decode worker that meets waits for its prompt.
		const pair = await start(scripts, [decodeScript], CONFIG, ports);
		const aborts = Array.from({ length: count }, () => new AbortController());
		const answers = [complete(0, aborts[0]?.signal)];
		await expect.poll(() => held.length).toBe(1);
		for (let i = 1; i < count; i++) {
			answers.push(complete(i, aborts[i]?.signal));
			await expect.poll(waiting).toBe(i);
		}
		for (const answer of answers) answer.catch(() => {});
		return { ...pair, held, answers, aborts };
	}

	it("a request is sent to nobody until it is its turn, then to both", async () => {
		const { prefill, decode, held, answers } = await queue(3);
		expect([prefill, decode].map((workers) => bodies(workers).length)).toEqual([1, meets ? 1 : 0]);
		for (let done = 0; done < 3; done++) {
			await expect.poll(() => held.length).toBe(done + 1);
			prefilled(held[done] as ScriptedCall);
			expect((await answers[done])?.json.usage.completion_tokens).toBe(3);
		}
		expect(await waiting()).toBe(0);
		const [first, second] = [bodies(prefill), bodies(decode)];
		expect([first.length, second.length]).toEqual([3, 3]);
		const room = ({ bootstrap_info }: PreprocessedRequest) => bootstrap_info?.bootstrap_room;
		expect(second.map(room)).toEqual(first.map(room));
		expect(new Set(first.map(room)).size).toBe(meets ? 3 : 1);
	});

	it("a client that leaves while it waits is forgotten, and nobody else is", async () => {
		const { prefill, decode, held, answers, aborts } = await queue(3);
		aborts[1]?.abort();
		await expect.poll(waiting).toBe(1);
		prefilled(held[0] as ScriptedCall);
		await expect.poll(() => held.length).toBe(2);
		prefilled(held[1] as ScriptedCall);
		for (const i of [0, 2]) expect((await answers[i])?.status).toBe(200);
		expect([prefill, decode].map((workers) => bodies(workers).length)).toEqual([2, 2]);
	});

	it("when the prefill worker is lost, who waits and who had met is served by the decode worker", async () => {
		// Who meets waits for a prefill worker that does not come.
		const decodeScript: Script = (call) => {
			if (call.body.annotations.includes(BYPASS) || call.body.bootstrap_info === undefined) sendAll(IDS)(call);
		};
		const { decode, held, answers } = await queue(3, 1, decodeScript);
		held[0]?.fail(gone());
		for (const answer of answers) expect((await answer).json.usage.completion_tokens).toBe(3);
		expect(bodies(decode).filter(({ annotations }) => annotations.includes(BYPASS))).toHaveLength(3);
		expect(await waiting()).toBe(0);
	});
});
