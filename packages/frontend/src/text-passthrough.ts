// SPDX-License-Identifier: Apache-2.0
// Models whose workers take OpenAI's request as it is (model_input Text) and answer with OpenAI's chunks.
import type { ServerResponse } from "node:http";
import { type Annotated, DynamoError, isJsonObject, stringifyJson } from "@dynamo-ts/protocols/internal";
import type { ResponseSink } from "@dynamo-ts/runtime";
import { Dispatch } from "./dispatch.js";
import type { DispatchOptions } from "./dispatch-options.js";
import type { GenerationHost } from "./generation.js";
import type { RequestTracker } from "./request-tracker.js";
import { SseWriter } from "./sse.js";
import type { WorkerSet } from "./worker-set.js";

type Json = Record<string, unknown>;

export interface PassthroughPlan {
	readonly requestId: string;
	readonly kind: "chat" | "completions";
	readonly stream: boolean;
	readonly set: WorkerSet;
	/** The client's body. */
	readonly body: unknown;
	readonly headers: Readonly<Record<string, string>>;
	readonly dispatch: DispatchOptions;
	readonly keepAliveMs: number;
}

/** Hands the worker's chunks on, or folds them into one answer. */
export class TextPassthrough implements ResponseSink {
	private readonly response: ServerResponse;
	private readonly tracker: RequestTracker;
	private readonly host: GenerationHost;
	private readonly writer: SseWriter | undefined;
	private readonly dispatch: Dispatch;
	private readonly fold: ChunkFold;
	private over = false;

	constructor(plan: PassthroughPlan, response: ServerResponse, tracker: RequestTracker, host: GenerationHost) {
		this.response = response;
		this.tracker = tracker;
		this.host = host;
		this.fold = new ChunkFold(plan.kind);
		this.dispatch = new Dispatch(
			plan.set,
			{ id: plan.requestId, payload: plan.body, headers: plan.headers },
			undefined,
			this,
			{
				...plan.dispatch,
				onAttempt: (instance) => {
					tracker.workerId = instance.instance_id;
				},
			},
		);
		if (!plan.stream) return;
		this.writer = new SseWriter(response, plan.keepAliveMs, {
			onBlocked: () => this.dispatch.pause(),
			onDrain: () => this.dispatch.resume(),
		});
	}

	start(): void {
		this.response.on("close", () => {
			if (this.over) return;
			this.over = true;
			this.dispatch.kill();
			this.tracker.finish({ kind: "disconnected" });
		});
		this.tracker.enterStage("dispatch", "aggregated");
		this.dispatch.start();
	}

	onOpen(): void {
		if (!this.over) this.writer?.commit();
	}

	onItem(item: Annotated<unknown>): void {
		if (this.over || item.data === null || item.data === undefined) return;
		if (!isJsonObject(item.data)) {
			this.onError(new DynamoError("BackendProtocol", "the worker sent an item that is not an OpenAI chunk"));
			return;
		}
		const tokens = this.fold.add(item.data);
		if (tokens > 0) this.tracker.onTokens(tokens, performance.now(), 0);
		this.writer?.queue(`data: ${stringifyJson(item.data)}\n\n`);
	}

	onEnd(): void {
		if (this.over) return;
		if (this.fold.empty) {
			this.onError(new DynamoError("BackendProtocol", "the worker ended its stream without any output"));
			return;
		}
		this.over = true;
		const json = this.writer === undefined ? stringifyJson(this.fold.answer()) : "";
		this.tracker.finish({ kind: "success" });
		if (this.writer !== undefined) this.writer.end();
		else this.host.sendJson(this.response, 200, json);
	}

	onError(error: DynamoError): void {
		if (this.over) return;
		this.over = true;
		this.dispatch.kill();
		const failure = this.host.failureOf(error);
		this.tracker.finish({ kind: "failure", failure });
		if (this.writer?.committed) {
			this.writer.queue(failure.http.toSseEvent());
			this.writer.end();
		} else {
			this.writer?.discard();
			this.host.sendFailure(this.response, failure);
		}
	}
}

interface FoldedChoice {
	text: string;
	role: string;
	finishReason: unknown;
	logprobs: unknown;
	/** Members of deltas other than content and role (tool calls, reasoning), the last value of each. */
	others: Json;
}

/** Folds a stream of OpenAI chunks into the answer that a request without `stream` gets. */
export class ChunkFold {
	private readonly kind: "chat" | "completions";
	private readonly choices = new Map<number, FoldedChoice>();
	private first: Json | undefined;
	private usage: Json | null = null;

	constructor(kind: "chat" | "completions") {
		this.kind = kind;
	}

	get empty(): boolean {
		return this.first === undefined;
	}

	/** Takes a chunk; returns the number of its choices that carry text, which stands in for tokens. */
	add(chunk: Json): number {
		this.first ??= chunk;
		if (isJsonObject(chunk.usage)) this.usage = chunk.usage;
		let withText = 0;
		for (const raw of Array.isArray(chunk.choices) ? (chunk.choices as Json[]) : []) {
			const choice = this.choice(Number(raw.index ?? 0));
			const delta = (this.kind === "chat" ? (raw.delta ?? raw.message ?? {}) : { content: raw.text }) as Json;
			const { content, role, ...others } = delta;
			if (typeof content === "string" && content !== "") {
				choice.text += content;
				withText++;
			}
			if (typeof role === "string") choice.role = role;
			Object.assign(choice.others, others);
			if (raw.finish_reason !== null && raw.finish_reason !== undefined) choice.finishReason = raw.finish_reason;
			if (raw.logprobs !== null && raw.logprobs !== undefined) choice.logprobs = raw.logprobs;
		}
		return withText;
	}

	answer(): Json {
		const { id, created, model } = this.first ?? {};
		const object = this.kind === "chat" ? "chat.completion" : "text_completion";
		const choices = [...this.choices].sort(([a], [b]) => a - b).map(([index, choice]) => this.shown(index, choice));
		return { id, choices, created, model, object, usage: this.usage };
	}

	private choice(index: number): FoldedChoice {
		let choice = this.choices.get(index);
		if (choice === undefined) {
			choice = { text: "", role: "assistant", finishReason: null, logprobs: null, others: {} };
			this.choices.set(index, choice);
		}
		return choice;
	}

	private shown(index: number, choice: FoldedChoice): Json {
		const { text, role, finishReason, logprobs, others } = choice;
		if (this.kind === "completions") return { text, index, finish_reason: finishReason, logprobs };
		return { index, message: { content: text, refusal: null, role, ...others }, finish_reason: finishReason, logprobs };
	}
}
