// SPDX-License-Identifier: Apache-2.0
import { CliError } from "../cli-error.js";

export interface ChatTurn {
	readonly role: "system" | "user" | "assistant";
	readonly content: string;
}

export interface ChatOptions {
	/** `http://host:port`. */
	readonly url: string;
	readonly model: string;
	readonly messages: readonly ChatTurn[];
	readonly temperature: number | undefined;
	readonly maxTokens: number | undefined;
	readonly signal: AbortSignal;
	onText(text: string): void;
}

/** How an answer ended. */
export interface ChatResult {
	readonly text: string;
	readonly finishReason: string | undefined;
	readonly completionTokens: number | undefined;
}

/** The server answered with an error; the conversation can go on. */
export class ChatError extends CliError {}

/** Names of the models that a server lists. */
export async function listModels(url: string, signal: AbortSignal): Promise<string[]> {
	const response = await fetch(`${url}/v1/models`, { signal });
	if (!response.ok) {
		await response.body?.cancel();
		throw new ChatError(`${url}/v1/models answered ${response.status}`);
	}
	const body = (await response.json()) as { data?: { id?: unknown }[] };
	return (body.data ?? []).map(({ id }) => id).filter((id): id is string => typeof id === "string");
}

/**
 * Streams one answer.
 * @throws ChatError for an error of the server; AbortError after `signal`.
 */
export async function streamChat(options: ChatOptions): Promise<ChatResult> {
	const response = await fetch(`${options.url}/v1/chat/completions`, {
		method: "POST",
		headers: { "content-type": "application/json" },
		body: JSON.stringify({
			model: options.model,
			messages: options.messages,
			stream: true,
			stream_options: { include_usage: true },
			...(options.temperature === undefined ? {} : { temperature: options.temperature }),
			...(options.maxTokens === undefined ? {} : { max_tokens: options.maxTokens }),
		}),
		signal: options.signal,
	});
	if (!response.ok || response.body === null) throw new ChatError(errorText(response.status, await response.text()));
	let text = "";
	let finishReason: string | undefined;
	let completionTokens: number | undefined;
	const events = new EventReader((data) => {
		if (data === "[DONE]") return;
		const chunk = JSON.parse(data) as {
			error?: { message?: string };
			choices?: { delta?: { content?: string | null }; finish_reason?: string | null }[];
			usage?: { completion_tokens?: number } | null;
		};
		if (chunk.error !== undefined) throw new ChatError(chunk.error.message ?? "the server broke off");
		const choice = chunk.choices?.[0];
		const delta = choice?.delta?.content;
		if (typeof delta === "string" && delta !== "") {
			text += delta;
			options.onText(delta);
		}
		finishReason = choice?.finish_reason ?? finishReason;
		completionTokens = chunk.usage?.completion_tokens ?? completionTokens;
	});
	const decoder = new TextDecoder();
	for await (const bytes of response.body) events.push(decoder.decode(bytes as Uint8Array, { stream: true }));
	return { text, finishReason, completionTokens };
}

function errorText(status: number, body: string): string {
	try {
		const parsed = JSON.parse(body) as { message?: unknown; error?: { message?: unknown } };
		const message = parsed.error?.message ?? parsed.message;
		if (typeof message === "string") return message;
	} catch {
		// Not the body of an OpenAI-compatible error; the status says what there is to say.
	}
	return `the server answered ${status}`;
}

/** Takes the data of server-sent events out of text that comes in any pieces. */
export class EventReader {
	readonly #onData: (data: string) => void;
	#rest = "";
	#data: string[] = [];

	constructor(onData: (data: string) => void) {
		this.#onData = onData;
	}

	push(text: string): void {
		this.#rest += text;
		const lines = this.#rest.split("\n");
		this.#rest = lines.pop() ?? "";
		for (const raw of lines) {
			const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
			if (line === "") {
				const data = this.#data.join("\n");
				const some = this.#data.length > 0;
				this.#data = [];
				if (some) this.#onData(data);
			} else if (line.startsWith("data:")) {
				this.#data.push(line.slice(line[5] === " " ? 6 : 5));
			}
		}
	}
}
