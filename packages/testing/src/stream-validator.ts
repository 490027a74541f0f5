// SPDX-License-Identifier: Apache-2.0
import { createParser, type EventSourceParser } from "eventsource-parser";

/** What a stream is expected to look like; each check that depends on the request is named here. */
export interface StreamExpectations {
	/** Which API the chunks belong to. */
	readonly kind: "chat" | "completions";
	/** `stream_options.include_usage`: exactly one usage chunk with empty choices, after all finish reasons. */
	readonly includeUsage?: boolean;
	/** `stream_options.continuous_usage_stats`: every chunk carries usage. */
	readonly continuousUsage?: boolean;
	/** Number of choices that must have finished. Default 1; not checked after an error event. */
	readonly choices?: number;
	/** Model name that every chunk must carry. */
	readonly model?: string;
	/** The stream must end with an error event, or may. Default false: an error event is a violation. */
	readonly expectError?: boolean | "either";
	/** The model's bytes are known to be broken, so U+FFFD is no violation. */
	readonly allowReplacementCharacter?: boolean;
	/** The client asked for logprobs: entries must be as many as completion tokens when usage is there. */
	readonly logprobs?: boolean;
	/** Requests with several prompts: ids carry the suffix `-<choice>`. */
	readonly idPerChoice?: boolean;
}

/** What one choice of a stream amounts to. */
export interface ChoiceSummary {
	readonly index: number;
	text: string;
	role: string | undefined;
	finishReason: string | undefined;
	/** Chunks with text. */
	contentChunks: number;
	/** Entries of all logprobs objects, in order. */
	logprobs: unknown[];
}

/** What a whole stream amounts to. */
export interface StreamSummary {
	readonly id: string | undefined;
	readonly created: number | undefined;
	readonly model: string | undefined;
	readonly choices: ChoiceSummary[];
	readonly usage: Record<string, unknown> | undefined;
	/** The error object of the error event, if there was one. */
	readonly error: { message: string; type: string; code: number } | undefined;
	/** Texts of comment lines, in order. */
	readonly comments: string[];
	/** Number of data events, `[DONE]` included. */
	readonly events: number;
	readonly done: boolean;
	/** Every rule that was broken; empty for a good stream. */
	readonly violations: string[];
}

/** Thrown by {@link StreamValidator.end} for a stream that breaks rules. */
export class StreamViolation extends Error {
	readonly violations: readonly string[];
	constructor(violations: readonly string[]) {
		super(`the stream breaks ${violations.length} rule(s):\n- ${violations.join("\n- ")}`);
		this.name = "StreamViolation";
		this.violations = violations;
	}
}

const FINISH_REASONS = new Set(["stop", "length", "content_filter", "tool_calls", "function_call"]);

/**
 * Checks an OpenAI event stream while it arrives: SSE framing and UTF-8, role once per choice and first, finish
 * reason once and last, nothing after it, the three usage modes, constant id, created and model, no broken
 * characters, an error event followed by nothing but `[DONE]`, and `[DONE]` exactly once at the very end.
 */
export class StreamValidator {
	private readonly expect: StreamExpectations;
	private readonly parser: EventSourceParser;
	private readonly decoder = new TextDecoder("utf-8", { fatal: true });
	private readonly choices = new Map<number, ChoiceSummary>();
	private readonly violations: string[] = [];
	private readonly comments: string[] = [];
	private readonly onEvent: ((event: string | undefined, data: string) => void) | undefined;
	private id: string | undefined;
	private created: number | undefined;
	private model: string | undefined;
	private usage: Record<string, unknown> | undefined;
	private usageChunks = 0;
	private lastContinuousUsage: Record<string, unknown> | undefined;
	private error: StreamSummary["error"];
	private events = 0;
	private done = false;
	private tail = "";

	/** @param onEvent called with each data event as it is complete. */
	constructor(expect: StreamExpectations, onEvent?: (event: string | undefined, data: string) => void) {
		this.expect = expect;
		this.onEvent = onEvent;
		this.parser = createParser({
			onEvent: (message) => this.takeEvent(message.event, message.data),
			onComment: (comment) => this.comments.push(comment),
			onError: (error) => this.fail(`SSE: ${error.message}`),
		});
	}

	/** Takes the next bytes; any split is allowed, within a character too. */
	push(chunk: Uint8Array | string): void {
		let text: string;
		try {
			text = typeof chunk === "string" ? chunk : this.decoder.decode(chunk, { stream: true });
		} catch {
			this.fail("the bytes are not UTF-8");
			return;
		}
		this.tail = (this.tail + text).slice(-2);
		this.parser.feed(text);
	}

	/** What was seen so far. */
	summary(): StreamSummary {
		return {
			id: this.id,
			created: this.created,
			model: this.model,
			choices: [...this.choices.values()].sort((a, b) => a.index - b.index),
			usage: this.usage,
			error: this.error,
			comments: this.comments,
			events: this.events,
			done: this.done,
			violations: this.violations,
		};
	}

	/**
	 * To be called when the stream has ended.
	 * @throws StreamViolation that lists every broken rule.
	 */
	end(): StreamSummary {
		try {
			this.decoder.decode();
		} catch {
			this.fail("the stream ends within a UTF-8 character");
		}
		if (this.tail !== "\n\n") this.fail("the stream does not end with an empty line");
		if (!this.done) this.fail("no [DONE]");
		if (this.error === undefined) this.checkComplete();
		if (this.expect.expectError === true && this.error === undefined)
			this.fail("no error event, though one was expected");
		if (this.violations.length > 0) throw new StreamViolation(this.violations);
		return this.summary();
	}

	private checkComplete(): void {
		const wanted = this.expect.choices ?? 1;
		if (this.choices.size !== wanted) this.fail(`${this.choices.size} choice(s), expected ${wanted}`);
		for (const choice of this.choices.values()) {
			if (choice.finishReason === undefined) this.fail(`choice ${choice.index}: no finish_reason`);
			if (this.expect.kind === "chat" && choice.role === undefined) this.fail(`choice ${choice.index}: no role`);
		}
		const usageWanted = this.expect.includeUsage ? 1 : 0;
		if (this.usageChunks !== usageWanted) {
			this.fail(`${this.usageChunks} usage chunk(s) with empty choices, expected ${usageWanted}`);
		}
		const usage = this.usage ?? this.lastContinuousUsage;
		if (this.expect.logprobs && usage !== undefined) {
			const entries = [...this.choices.values()].reduce((sum, choice) => sum + choice.logprobs.length, 0);
			if (entries !== usage.completion_tokens) {
				this.fail(`${entries} logprobs entries for ${String(usage.completion_tokens)} completion tokens`);
			}
		}
	}

	private fail(text: string): void {
		this.violations.push(text);
	}

	private takeEvent(event: string | undefined, data: string): void {
		this.events++;
		this.onEvent?.(event, data);
		if (this.done) {
			this.fail(data === "[DONE]" ? "[DONE] twice" : `event after [DONE]: ${data.slice(0, 100)}`);
			return;
		}
		if (data === "[DONE]") {
			this.done = true;
			return;
		}
		let chunk: Record<string, unknown>;
		try {
			chunk = JSON.parse(data) as Record<string, unknown>;
		} catch {
			this.fail(`not JSON: ${data.slice(0, 100)}`);
			return;
		}
		if (this.error !== undefined) {
			this.fail("an event between the error event and [DONE]");
			return;
		}
		if ("error" in chunk) {
			this.takeError(chunk.error);
			return;
		}
		this.takeChunk(chunk);
	}

	private takeError(error: unknown): void {
		const { message, type, code } = (error ?? {}) as Record<string, unknown>;
		if (typeof message !== "string" || typeof type !== "string" || typeof code !== "number") {
			this.fail("an error event without message, type and code");
		}
		this.error = { message: String(message), type: String(type), code: Number(code) };
		if (!this.expect.expectError) this.fail(`error event: ${this.error.message}`);
	}

	private takeChunk(chunk: Record<string, unknown>): void {
		const object = this.expect.kind === "chat" ? "chat.completion.chunk" : "text_completion";
		if (chunk.object !== object) this.fail(`object is ${String(chunk.object)}, expected ${object}`);
		if (!Array.isArray(chunk.choices)) {
			this.fail("choices is not an array");
			return;
		}
		this.checkConstants(chunk);
		const usage = chunk.usage as Record<string, unknown> | null | undefined;
		if (chunk.choices.length === 0) {
			this.usageChunks++;
			if (usage === null || usage === undefined) this.fail("a chunk without choices and usage");
			else this.usage = usage;
			if ([...this.choices.values()].some((choice) => choice.finishReason === undefined)) {
				this.fail("the usage chunk comes before a finish_reason");
			}
			return;
		}
		if (this.usageChunks > 0) this.fail("a chunk after the usage chunk");
		if (this.expect.continuousUsage) {
			if (usage === null || usage === undefined) this.fail("a chunk without usage in continuous mode");
			else this.lastContinuousUsage = usage;
		} else if (usage !== null && usage !== undefined) this.fail("usage in an ordinary chunk");
		for (const choice of chunk.choices) this.takeChoice(choice as Record<string, unknown>);
	}

	private checkConstants(chunk: Record<string, unknown>): void {
		let id = String(chunk.id);
		const first = (chunk.choices as { index?: number }[])[0];
		if (this.expect.idPerChoice) {
			const suffix = `-${first?.index ?? 0}`;
			if (first !== undefined && !id.endsWith(suffix)) this.fail(`id ${id} does not end with ${suffix}`);
			id = id.replace(/-\d+$/, "");
		}
		this.id ??= id;
		this.created ??= Number(chunk.created);
		this.model ??= String(chunk.model);
		if (id !== this.id) this.fail(`id changed from ${this.id} to ${id}`);
		if (chunk.created !== this.created) this.fail(`created changed to ${String(chunk.created)}`);
		if (chunk.model !== this.model) this.fail(`model changed to ${String(chunk.model)}`);
		if (this.expect.model !== undefined && chunk.model !== this.expect.model) {
			this.fail(`model is ${String(chunk.model)}, expected ${this.expect.model}`);
		}
	}

	private takeChoice(raw: Record<string, unknown>): void {
		const index = Number(raw.index);
		let choice = this.choices.get(index);
		const isFirst = choice === undefined;
		if (choice === undefined) {
			choice = { index, text: "", role: undefined, finishReason: undefined, contentChunks: 0, logprobs: [] };
			this.choices.set(index, choice);
		}
		const at = `choice ${index}`;
		if (choice.finishReason !== undefined) this.fail(`${at}: a chunk after finish_reason`);
		let text: unknown;
		if (this.expect.kind === "chat") {
			const delta = (raw.delta ?? {}) as Record<string, unknown>;
			text = delta.content;
			if ("role" in delta && delta.role !== null) {
				if (choice.role !== undefined) this.fail(`${at}: role sent again`);
				else if (!isFirst) this.fail(`${at}: role is not in the first chunk`);
				choice.role = String(delta.role);
			}
		} else text = raw.text;
		if (typeof text === "string" && text !== "") {
			choice.text += text;
			choice.contentChunks++;
			if (text.includes("\ufffd") && !this.expect.allowReplacementCharacter) this.fail(`${at}: U+FFFD in ${text}`);
			if (!text.isWellFormed()) this.fail(`${at}: half a surrogate pair`);
		}
		this.takeLogprobs(choice, raw.logprobs);
		const finish = raw.finish_reason;
		if (finish !== null && finish !== undefined) {
			if (!FINISH_REASONS.has(String(finish))) this.fail(`${at}: finish_reason ${String(finish)}`);
			choice.finishReason = String(finish);
		}
	}

	private takeLogprobs(choice: ChoiceSummary, logprobs: unknown): void {
		if (logprobs === null || logprobs === undefined) return;
		if (!this.expect.logprobs) {
			this.fail(`choice ${choice.index}: logprobs that nobody asked for`);
			return;
		}
		const { content, tokens } = logprobs as { content?: unknown[]; tokens?: unknown[] };
		const entries = this.expect.kind === "chat" ? content : tokens;
		if (!Array.isArray(entries)) this.fail(`choice ${choice.index}: logprobs without entries`);
		else choice.logprobs.push(...entries);
	}
}

/**
 * Checks a whole stream text.
 * @throws StreamViolation
 */
export function validateStream(text: string | Uint8Array, expect: StreamExpectations): StreamSummary {
	const validator = new StreamValidator(expect);
	validator.push(text);
	return validator.end();
}
