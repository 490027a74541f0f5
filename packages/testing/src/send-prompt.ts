// SPDX-License-Identifier: Apache-2.0
import { parseJson } from "@dynamo-ts/protocols/internal";
import { type HttpAnswer, http } from "./sse-client.js";

/** Who answered a prompt, and how many of its tokens were cached there. */
export interface Placement {
	readonly worker: bigint;
	readonly cached: number;
}

/**
 * Sends a prompt of token ids to a frontend, ours or a real one, and waits for its answer of two tokens.
 * @throws Error for an error, an answer that does not say who gave it, or none within 30 seconds.
 */
export async function sendPrompt(
	url: string,
	model: string,
	prompt: readonly number[],
	headers: Record<string, string> = {},
): Promise<Placement> {
	const { status, body } = await http(`${url}/v1/completions`, {
		headers,
		body: { model, prompt, max_tokens: 2, ignore_eos: true, nvext: { extra_fields: ["worker_id"] } },
		signal: AbortSignal.timeout(30_000),
	});
	if (status !== 200) throw new Error(`status ${status}: ${body}`);
	// Ids have 64 bits.
	const { nvext, usage } = parseJson(body) as {
		readonly nvext?: { readonly worker_id?: { readonly decode_worker_id?: number | bigint } };
		readonly usage: { readonly prompt_tokens_details?: { readonly cached_tokens?: number } };
	};
	const worker = nvext?.worker_id?.decode_worker_id;
	if (worker === undefined) throw new Error(`the answer does not say who gave it: ${body}`);
	return { worker: BigInt(worker), cached: usage.prompt_tokens_details?.cached_tokens ?? 0 };
}

/** Asks a question; without sampling parameters in `more` whoever has the same weights answers the same. */
export function askChat(
	url: string,
	model: string,
	content: string,
	more: Record<string, unknown> = {},
): Promise<HttpAnswer> {
	return http(`${url}/v1/chat/completions`, {
		body: { model, messages: [{ role: "user", content }], temperature: 0, max_tokens: 12, ...more },
	});
}

/** The text of a whole answer to a chat. @throws Error for any other. */
export function textOf({ status, body, json }: HttpAnswer): string {
	if (status !== 200) throw new Error(`status ${status}: ${body}`);
	return json.choices[0].message.content;
}
