// SPDX-License-Identifier: Apache-2.0
// The bytes of the two APIs' chunks and answers. Everything that is the same in all chunks of a stream is put into
// strings once; per token only the content is escaped. Key order is that of Dynamo's frontend.
import type { PromptTokensDetails } from "@dynamo-ts/protocols/internal";
import type { FinishReason, TokenLogprob } from "./choice-state.js";

/** Token counts of an answer. */
export interface UsageCounts {
	promptTokens: number;
	completionTokens: number;
	/** From the worker; absent when it gave none. */
	details: PromptTokensDetails | undefined;
}

/** One choice of a finished answer. */
export interface FinishedChoice {
	readonly index: number;
	readonly text: string;
	readonly finishReason: FinishReason;
	readonly logprobs: readonly TokenLogprob[] | undefined;
}

/** What an answer says about itself, fixed from its first byte to its last. */
export interface AnswerIdentity {
	/** Without the API's prefix. */
	readonly requestId: string;
	readonly model: string;
	/** Unix time, seconds. */
	readonly created: number;
}

/** Makes the JSON of one answer; the event stream's lines included. */
export interface ChunkFormat {
	/** A chunk with text. `usage` only in continuous mode, `nvext` a JSON text or undefined. */
	content(
		index: number,
		text: string,
		withRole: boolean,
		logprobs: readonly TokenLogprob[] | undefined,
		usage: UsageCounts | undefined,
		nvext: string | undefined,
	): string;
	/** The last chunk of a choice. */
	finish(index: number, reason: FinishReason, usage: UsageCounts | undefined, nvext: string | undefined): string;
	/** The chunk with empty choices at the end. */
	usage(usage: UsageCounts): string;
	/** The whole answer as one JSON text. */
	answer(choices: readonly FinishedChoice[], usage: UsageCounts, nvext: string | undefined): string;
}

/** An annotation: its payload stands in a comment line, so that clients that know nothing of it skip it. */
export function annotationEvent(name: string, value: string): string {
	return `event: ${name}\n: ${JSON.stringify(value)}\n\n`;
}

const DATA = "data: ";

export class ChatChunkFormat implements ChunkFormat {
	private readonly head: string;
	private readonly tail: string;
	private readonly contentHeads: string[] = [];
	private readonly plainTail: string;
	private readonly roleTail: string;

	constructor(identity: AnswerIdentity) {
		this.head = `${DATA}{"id":${JSON.stringify(`chatcmpl-${identity.requestId}`)},"choices":[`;
		this.tail = `],"created":${identity.created},"model":${JSON.stringify(identity.model)},"object":"chat.completion.chunk"`;
		this.plainTail = `},"finish_reason":null,"logprobs":null}${this.tail}}\n\n`;
		this.roleTail = `,"role":"assistant"${this.plainTail}`;
	}

	content(
		index: number,
		text: string,
		withRole: boolean,
		logprobs: readonly TokenLogprob[] | undefined,
		usage: UsageCounts | undefined,
		nvext: string | undefined,
	): string {
		let head = this.contentHeads[index];
		if (head === undefined) {
			head = `${this.head}{"index":${index},"delta":{"content":`;
			this.contentHeads[index] = head;
		}
		const content = JSON.stringify(text);
		if (logprobs === undefined && usage === undefined && nvext === undefined) {
			return head + content + (withRole ? this.roleTail : this.plainTail);
		}
		const role = withRole ? ',"role":"assistant"' : "";
		const shown = logprobs === undefined ? "null" : chatLogprobs(logprobs);
		return `${head}${content}${role}},"finish_reason":null,"logprobs":${shown}}${this.tail}${this.extras(usage, nvext)}}\n\n`;
	}

	finish(index: number, reason: FinishReason, usage: UsageCounts | undefined, nvext: string | undefined): string {
		return `${this.head}{"index":${index},"delta":{},"finish_reason":"${reason}","logprobs":null}${this.tail}${this.extras(usage, nvext)}}\n\n`;
	}

	usage(usage: UsageCounts): string {
		return `${this.head}${this.tail}${this.extras(usage, undefined)}}\n\n`;
	}

	answer(choices: readonly FinishedChoice[], usage: UsageCounts, nvext: string | undefined): string {
		const shown = choices.map((choice) => {
			const logprobs = choice.logprobs === undefined ? "null" : chatLogprobs(choice.logprobs);
			const message = `{"content":${JSON.stringify(choice.text)},"refusal":null,"role":"assistant"}`;
			return `{"index":${choice.index},"message":${message},"finish_reason":"${choice.finishReason}","logprobs":${logprobs}}`;
		});
		const tail = this.tail.replace(/chat\.completion\.chunk"$/, 'chat.completion"');
		return `${this.head.slice(DATA.length)}${shown.join(",")}${tail}${this.extras(usage, nvext)}}`;
	}

	private extras(usage: UsageCounts | undefined, nvext: string | undefined): string {
		const shown = usage === undefined ? "" : `,"usage":${usageJson(usage, false)}`;
		return nvext === undefined ? shown : `${shown},"nvext":${nvext}`;
	}
}

export class CompletionChunkFormat implements ChunkFormat {
	private readonly heads: string[] = [];
	private readonly tail: string;
	private readonly plainTail: string;
	private readonly identity: AnswerIdentity;
	private readonly idPerChoice: boolean;

	/** @param idPerChoice requests with several prompts: the ids of chunks end in `-<choice>`. */
	constructor(identity: AnswerIdentity, idPerChoice: boolean) {
		this.identity = identity;
		this.idPerChoice = idPerChoice;
		this.tail = `],"created":${identity.created},"model":${JSON.stringify(identity.model)},"system_fingerprint":null,"object":"text_completion","usage":`;
		this.plainTail = `}${this.tail}null}\n\n`;
	}

	content(
		index: number,
		text: string,
		_withRole: boolean,
		logprobs: readonly TokenLogprob[] | undefined,
		usage: UsageCounts | undefined,
		nvext: string | undefined,
	): string {
		let head = this.heads[index];
		if (head === undefined) {
			head = `${this.head(index)}{"text":`;
			this.heads[index] = head;
		}
		const content = JSON.stringify(text);
		if (logprobs === undefined && usage === undefined && nvext === undefined) {
			return `${head}${content},"index":${index}${this.plainTail}`;
		}
		const shown = logprobs === undefined ? "" : `,"logprobs":${completionLogprobs(logprobs)}`;
		return `${head}${content},"index":${index}${shown}}${this.tail}${extras(usage, nvext)}}\n\n`;
	}

	finish(index: number, reason: FinishReason, usage: UsageCounts | undefined, nvext: string | undefined): string {
		const choice = `{"text":"","index":${index},"finish_reason":"${reason}"}`;
		return `${this.head(index)}${choice}${this.tail}${extras(usage, nvext)}}\n\n`;
	}

	usage(usage: UsageCounts): string {
		return `${this.head(undefined)}${this.tail}${extras(usage, undefined)}}\n\n`;
	}

	answer(choices: readonly FinishedChoice[], usage: UsageCounts, nvext: string | undefined): string {
		const shown = choices.map((choice) => {
			const logprobs = choice.logprobs === undefined ? "" : `,"logprobs":${completionLogprobs(choice.logprobs)}`;
			return `{"text":${JSON.stringify(choice.text)},"index":${choice.index}${logprobs},"finish_reason":"${choice.finishReason}"}`;
		});
		return `${this.head(undefined).slice(DATA.length)}${shown.join(",")}${this.tail}${extras(usage, nvext)}}`;
	}

	private head(index: number | undefined): string {
		const suffix = this.idPerChoice && index !== undefined ? `-${index}` : "";
		return `${DATA}{"id":${JSON.stringify(`cmpl-${this.identity.requestId}${suffix}`)},"choices":[`;
	}
}

/** Completions always have a usage member, null in ordinary chunks. */
function extras(usage: UsageCounts | undefined, nvext: string | undefined): string {
	const shown = usage === undefined ? "null" : usageJson(usage, true);
	return nvext === undefined ? shown : `${shown},"nvext":${nvext}`;
}

/** @param withNulls completions show details that the worker left out as null, chat leaves them out. */
function usageJson(usage: UsageCounts, withNulls: boolean): string {
	const { promptTokens, completionTokens, details } = usage;
	const total = promptTokens + completionTokens;
	let shown = "";
	if (details !== undefined) {
		const members: string[] = [];
		const audio = details.audio_tokens ?? null;
		const cached = details.cached_tokens ?? null;
		if (audio !== null || withNulls) members.push(`"audio_tokens":${audio}`);
		if (cached !== null || withNulls) members.push(`"cached_tokens":${cached}`);
		shown = `,"prompt_tokens_details":{${members.join(",")}}`;
	}
	return `{"prompt_tokens":${promptTokens},"completion_tokens":${completionTokens},"total_tokens":${total}${shown}}`;
}

function chatLogprobs(logprobs: readonly TokenLogprob[]): string {
	const content = logprobs.map(({ token, logprob, bytes, top }) => ({
		token,
		logprob,
		bytes,
		top_logprobs: top.map((other) => ({ token: other.token, logprob: other.logprob, bytes: other.bytes })),
	}));
	return JSON.stringify({ content, refusal: null });
}

function completionLogprobs(logprobs: readonly TokenLogprob[]): string {
	return JSON.stringify({
		tokens: logprobs.map(({ token }) => token),
		token_logprobs: logprobs.map(({ logprob }) => logprob),
		top_logprobs: logprobs.map(({ top }) => Object.fromEntries(top.map((other) => [other.token, other.logprob]))),
		text_offset: logprobs.map(({ textOffset }) => textOffset),
	});
}
