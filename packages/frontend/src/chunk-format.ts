// SPDX-License-Identifier: Apache-2.0
// The bytes of the two APIs' chunks and answers. Everything that is the same in all chunks of a stream is put into
// strings once; per token only the content is escaped. Key order is that of Dynamo's frontend.
import type { CompletionTokensDetails, PromptTokensDetails } from "@dynamo-ts/protocols/internal";
import type { FinishReason, TokenAlternative, TokenLogprob } from "./choice-state.js";

/** Token counts of an answer. */
export interface UsageCounts {
	promptTokens: number;
	completionTokens: number;
	/** From the worker; absent when it gave none. */
	details: PromptTokensDetails | undefined;
	completionDetails: CompletionTokensDetails | undefined;
}

/** One choice of a finished answer. */
export interface FinishedChoice {
	readonly index: number;
	readonly text: string;
	readonly finishReason: FinishReason;
	readonly logprobs: readonly TokenLogprob[] | undefined;
	/** JSON of the prompt's log-probabilities, where the client asked for them. */
	readonly promptLogprobs: string | undefined;
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
	/** The API has roles: the first chunk of a choice carries one, and goes out even without text. */
	readonly hasRoles: boolean;
	/** A chunk of a choice that goes on. `usage` only in continuous mode, `nvext` a JSON text or undefined. */
	content(
		index: number,
		text: string,
		withRole: boolean,
		logprobs: readonly TokenLogprob[] | undefined,
		usage: UsageCounts | undefined,
		nvext: string | undefined,
	): string;
	/**
	 * The last chunk of a choice, with the text that came with the end. `promptLogprobs` as in {@link FinishedChoice}.
	 */
	finish(
		index: number,
		text: string,
		withRole: boolean,
		reason: FinishReason,
		logprobs: readonly TokenLogprob[] | undefined,
		usage: UsageCounts | undefined,
		nvext: string | undefined,
		promptLogprobs: string | undefined,
	): string;
	/** The chunk with empty choices at the end. */
	usage(usage: UsageCounts): string;
	/** The whole answer as one JSON text. */
	answer(choices: readonly FinishedChoice[], usage: UsageCounts, nvext: string | undefined): string;
}

/** An annotation: its payload stands in a comment line, so that clients that know nothing of it skip it. */
export function annotationEvent(name: string, value: string): string {
	return `event: ${name}\n: ${JSON.stringify(value)}\n\n`;
}

/** A worker's event that is no delta, for clients that know its name. */
export function commentEvent(name: string, comments: readonly string[]): string {
	const line = (text: string): string => text.replace(/\r\n|\r|\n/g, " ");
	return `event: ${line(name)}\n${comments.map((comment) => `: ${line(comment)}\n`).join("")}\n`;
}

const DATA = "data: ";

export class ChatChunkFormat implements ChunkFormat {
	readonly hasRoles = true;
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
		if (text !== "" && logprobs === undefined && usage === undefined && nvext === undefined) {
			return head + JSON.stringify(text) + (withRole ? this.roleTail : this.plainTail);
		}
		return this.chunk(index, text, withRole, "null", logprobs, usage, nvext, undefined);
	}

	finish(
		index: number,
		text: string,
		withRole: boolean,
		reason: FinishReason,
		logprobs: readonly TokenLogprob[] | undefined,
		usage: UsageCounts | undefined,
		nvext: string | undefined,
		promptLogprobs: string | undefined,
	): string {
		return this.chunk(index, text, withRole, `"${reason}"`, logprobs, usage, nvext, promptLogprobs);
	}

	private chunk(
		index: number,
		text: string,
		withRole: boolean,
		reason: string,
		logprobs: readonly TokenLogprob[] | undefined,
		usage: UsageCounts | undefined,
		nvext: string | undefined,
		promptLogprobs: string | undefined,
	): string {
		const content = text === "" ? "" : `"content":${JSON.stringify(text)}`;
		const role = withRole ? `${content === "" ? "" : ","}"role":"assistant"` : "";
		const shown = logprobs === undefined ? "null" : chatLogprobs(logprobs);
		const choice = `{"index":${index},"delta":{${content}${role}},"finish_reason":${reason},"logprobs":${shown}}`;
		return `${this.head}${choice}${this.tail}${this.extras(usage, promptLogprobs, nvext)}}\n\n`;
	}

	usage(usage: UsageCounts): string {
		return `${this.head}${this.tail}${this.extras(usage, undefined, undefined)}}\n\n`;
	}

	answer(choices: readonly FinishedChoice[], usage: UsageCounts, nvext: string | undefined): string {
		const shown = choices.map((choice) => {
			const logprobs = choice.logprobs === undefined ? "null" : chatLogprobs(choice.logprobs);
			const content = choice.text === "" ? "null" : JSON.stringify(choice.text);
			const message = `{"content":${content},"refusal":null,"role":"assistant"}`;
			return `{"index":${choice.index},"message":${message},"finish_reason":"${choice.finishReason}","logprobs":${logprobs}}`;
		});
		const tail = this.tail.replace(/chat\.completion\.chunk"$/, 'chat.completion"');
		const extras = this.extras(usage, choices[0]?.promptLogprobs, nvext);
		return `${this.head.slice(DATA.length)}${shown.join(",")}${tail}${extras}}`;
	}

	private extras(
		usage: UsageCounts | undefined,
		promptLogprobs: string | undefined,
		nvext: string | undefined,
	): string {
		let shown = usage === undefined ? "" : `,"usage":${usageJson(usage, false)}`;
		if (promptLogprobs !== undefined) shown += `,"prompt_logprobs":${promptLogprobs}`;
		return nvext === undefined ? shown : `${shown},"nvext":${nvext}`;
	}
}

export class CompletionChunkFormat implements ChunkFormat {
	readonly hasRoles = false;
	private readonly heads: string[] = [];
	private readonly tail: string;
	private readonly plainTail: string;
	private readonly identity: AnswerIdentity;
	private readonly choicesPerId: number | undefined;

	/** @param choicesPerId requests with several prompts: the ids of chunks end in `-<prompt>`, so many choices each. */
	constructor(identity: AnswerIdentity, choicesPerId?: number) {
		this.identity = identity;
		this.choicesPerId = choicesPerId;
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

	finish(
		index: number,
		text: string,
		_withRole: boolean,
		reason: FinishReason,
		logprobs: readonly TokenLogprob[] | undefined,
		usage: UsageCounts | undefined,
		nvext: string | undefined,
		promptLogprobs: string | undefined,
	): string {
		const choice = finishedChoice({ index, text, finishReason: reason, logprobs, promptLogprobs });
		return `${this.head(index)}${choice}${this.tail}${extras(usage, nvext)}}\n\n`;
	}

	usage(usage: UsageCounts): string {
		return `${this.head(undefined)}${this.tail}${extras(usage, undefined)}}\n\n`;
	}

	answer(choices: readonly FinishedChoice[], usage: UsageCounts, nvext: string | undefined): string {
		const shown = choices.map(finishedChoice);
		return `${this.head(undefined).slice(DATA.length)}${shown.join(",")}${this.tail}${extras(usage, nvext)}}`;
	}

	private head(index: number | undefined): string {
		const { choicesPerId } = this;
		const suffix = choicesPerId !== undefined && index !== undefined ? `-${Math.floor(index / choicesPerId)}` : "";
		return `${DATA}{"id":${JSON.stringify(`cmpl-${this.identity.requestId}${suffix}`)},"choices":[`;
	}
}

/** A finished choice of a completion, in an answer or a chunk. */
function finishedChoice({ index, text, finishReason, logprobs, promptLogprobs }: FinishedChoice): string {
	const shown = logprobs === undefined ? "" : `,"logprobs":${completionLogprobs(logprobs)}`;
	const ofPrompt = promptLogprobs === undefined ? "" : `,"prompt_logprobs":${promptLogprobs}`;
	return `{"text":${JSON.stringify(text)},"index":${index}${shown},"finish_reason":"${finishReason}"${ofPrompt}}`;
}

/** Completions always have a usage member, null in ordinary chunks. */
function extras(usage: UsageCounts | undefined, nvext: string | undefined): string {
	const shown = usage === undefined ? "null" : usageJson(usage, true);
	return nvext === undefined ? shown : `${shown},"nvext":${nvext}`;
}

/** @param withNulls completions show details that the worker left out as null, chat leaves them out. */
function usageJson(usage: UsageCounts, withNulls: boolean): string {
	const { promptTokens, completionTokens, details, completionDetails } = usage;
	const total = promptTokens + completionTokens;
	const prompt =
		details === undefined ? "" : `,"prompt_tokens_details":${detailsJson(details, PROMPT_DETAILS, withNulls)}`;
	const completion =
		completionDetails === undefined
			? ""
			: `,"completion_tokens_details":${detailsJson(completionDetails, COMPLETION_DETAILS, withNulls)}`;
	return `{"prompt_tokens":${promptTokens},"completion_tokens":${completionTokens},"total_tokens":${total}${prompt}${completion}}`;
}

const PROMPT_DETAILS = ["audio_tokens", "cached_tokens"] as const;
const COMPLETION_DETAILS = [
	"accepted_prediction_tokens",
	"audio_tokens",
	"reasoning_tokens",
	"rejected_prediction_tokens",
] as const;

function detailsJson<K extends string>(
	details: { readonly [name in K]?: number | null },
	names: readonly K[],
	withNulls: boolean,
): string {
	const members: string[] = [];
	for (const name of names) {
		const count = details[name] ?? null;
		if (count !== null || withNulls) members.push(`"${name}":${count}`);
	}
	return `{${members.join(",")}}`;
}

/** A number that stays a float to readers that tell floats from integers; JSON has no infinity. */
function floatJson(value: number): string {
	if (!Number.isFinite(value)) return "null";
	return Number.isInteger(value) ? `${Object.is(value, -0) ? "-0" : value}.0` : String(value);
}

function chatLogprobs(logprobs: readonly TokenLogprob[]): string {
	const content = logprobs.map((entry) => {
		const top = entry.top.map((other) => `{${alternativeMembers(other)},${bytesMember(other)}}`);
		return `{${alternativeMembers(entry)},"token_id":${entry.tokenId},${bytesMember(entry)},"top_logprobs":[${top.join(",")}]}`;
	});
	return `{"content":[${content.join(",")}],"refusal":null}`;
}

function alternativeMembers({ token, logprob }: TokenAlternative): string {
	return `"token":${JSON.stringify(token)},"logprob":${floatJson(logprob)}`;
}

function bytesMember({ bytes }: TokenAlternative): string {
	return `"bytes":${bytes === null ? "null" : `[${bytes.join(",")}]`}`;
}

function completionLogprobs(logprobs: readonly TokenLogprob[]): string {
	const tokens = logprobs.map(({ token }) => JSON.stringify(token));
	const chosen = logprobs.map(({ logprob }) => floatJson(logprob));
	const offsets = logprobs.map(({ textOffset }) => textOffset);
	const tops = logprobs.map(topMap);
	return `{"tokens":[${tokens.join(",")}],"token_logprobs":[${chosen.join(",")}],"top_logprobs":[${tops.join(",")}],"text_offset":[${offsets.join(",")}]}`;
}

/**
 * By text: the alternatives, then the chosen token where its text is none of theirs. Nothing when none were asked for,
 * null for a token without a log-probability.
 */
function topMap({ token, logprob, top }: TokenLogprob): string {
	if (Number.isNaN(logprob)) return "null";
	const byText = new Map(top.map((other) => [other.token, other.logprob]));
	if (top.length > 0 && !byText.has(token)) byText.set(token, logprob);
	return `{${[...byText].map(([text, value]) => `${JSON.stringify(text)}:${floatJson(value)}`).join(",")}}`;
}
