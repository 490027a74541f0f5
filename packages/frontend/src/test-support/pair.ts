// SPDX-License-Identifier: Apache-2.0
// A frontend before scripted prefill and decode workers.
import { DynamoError, type PreprocessedRequest } from "@dynamo-ts/protocols/internal";
import type { RuntimeConfig } from "@dynamo-ts/runtime";
import { http } from "@dynamo-ts/testing/internal";
import { expect } from "vitest";
import type { FrontendConfig } from "../config.js";
import type { Script, ScriptedWorker } from "../scripted-worker.js";
import { chatBody, MODEL, type Stack, startStack } from "./stack.js";

export const IDS = [70, 71, 72];
export const BYPASS = "x-bypass-remote-prefill";

/** The one that the test works with. */
export let stack: Stack | undefined;

/** Starts a frontend alone. */
export async function openStack(config: Partial<FrontendConfig> = {}, runtime: Partial<RuntimeConfig> = {}) {
	stack = await startStack(config, runtime);
	return stack;
}

/** Checks that nothing is left of any request, and ends everything. */
export async function closeStack(): Promise<void> {
	const closing = stack;
	stack = undefined;
	await closing?.close();
}

export const gone = (): DynamoError => new DynamoError("Disconnected", "the worker is gone");

export const usage = (cached_tokens: number) => ({
	prompt_tokens: 1,
	completion_tokens: 1,
	total_tokens: 2,
	prompt_tokens_details: { audio_tokens: null, cached_tokens },
});

/** What a prefill worker answers with when all is well. */
export const prefilled: Script = (call) => {
	const of = call.body.token_ids.length;
	call.send({ token_ids: [99], disaggregated_params: { handle: 2n ** 60n, of }, completion_usage: usage(16) });
	call.finish("length").end();
};

export interface Pair {
	readonly prefill: ScriptedWorker[];
	readonly decode: ScriptedWorker[];
}

export const bodies = (workers: readonly ScriptedWorker[]): PreprocessedRequest[] =>
	workers.flatMap(({ calls }) => calls.map(({ body }) => body));

export function prefillWorker(script: Script, more: { namespace?: string; port?: number } = {}) {
	const endpoint = more.port === undefined ? {} : { disaggregated_endpoint: meeting(more.port) };
	return (stack as Stack).worker({
		script,
		alone: true,
		component: "prefill",
		...(more.namespace === undefined ? {} : { namespace: more.namespace }),
		card: {
			worker_type: "prefill",
			needs: [["decode"]],
			model_type: "",
			runtime_config: { max_num_batched_tokens: 512, ...endpoint },
		},
	});
}

const meeting = (port: number) => ({ bootstrap_host: "127.0.0.1", bootstrap_port: port });

export function decodeWorker(script: Script, namespace?: string) {
	return (stack as Stack).worker({
		script,
		alone: true,
		...(namespace === undefined ? {} : { namespace }),
		card: { worker_type: "decode", needs: [["prefill"]] },
	});
}

/** Ports make prefill workers meet decode workers. */
export async function start(
	prefill: Script[],
	decode: Script[],
	config: Partial<FrontendConfig> = {},
	ports: number[] = [],
	runtime: Partial<RuntimeConfig> = {},
): Promise<Pair> {
	const { frontend } = await openStack(config, runtime);
	const pair: Pair = { prefill: [], decode: [] };
	for (const [i, script] of prefill.entries()) {
		const port = ports[i];
		pair.prefill.push(await prefillWorker(script, port === undefined ? {} : { port }));
	}
	for (const script of decode) pair.decode.push(await decodeWorker(script));
	await frontend.waitForModel(MODEL, 5000);
	// Which of several takes the first request is up to the order of discovery.
	await expect.poll(() => liveWorkers()).toEqual([prefill.length, decode.length]);
	return pair;
}

async function liveWorkers(): Promise<number[]> {
	const { json } = await http(`${stack?.url}/v1/models/${MODEL}/ready`);
	const types = json.namespaces.dynamo.worker_types;
	return [types.prefill?.workers, types.decode?.workers];
}

export const chat = (more: Record<string, unknown> = {}, headers: Record<string, string> = {}) =>
	http((stack as Stack).chat, { body: chatBody(more), headers });

/** Worker ids have more digits than JSON numbers of JavaScript. */
export const idsOf = (body: string): Record<string, string> =>
	Object.fromEntries([...body.matchAll(/"(\w+_worker_id)":(\d+)/g)].map(([, name, id]) => [name, id]));
