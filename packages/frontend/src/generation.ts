// SPDX-License-Identifier: Apache-2.0
import type { ServerResponse } from "node:http";
import type { CompletionTokensDetails, DynamoError, PromptTokensDetails } from "@dynamo-ts/protocols/internal";
import type { ChoiceRules, ChoiceState } from "./choice-state.js";
import { annotationEvent, type ChunkFormat, commentEvent, type UsageCounts } from "./chunk-format.js";
import type { DispatchOptions } from "./dispatch-options.js";
import type { ContentAttribute } from "./gen-ai-attributes.js";
import type { Failure, FailureContext } from "./http-errors.js";
import { Leg, type PromptRequest } from "./leg.js";
import type { MigrationLimits } from "./migration.js";
import { type NvextReport, nvextJson } from "./nvext-report.js";
import type { PrefillSettings } from "./prefill-leg.js";
import type { RequestTracker } from "./request-tracker.js";
import { SseWriter } from "./sse.js";
import type { WorkerSet } from "./worker-set.js";

/** How usage is told. */
export interface UsageMode {
	/** A chunk with empty choices at the end of a stream. */
	readonly final: boolean;
	/** On every chunk. */
	readonly continuous: boolean;
}

/** Everything that is needed to answer a request; see {@link Generation}. */
export interface GenerationPlan {
	readonly requestId: string;
	readonly stream: boolean;
	readonly set: WorkerSet;
	readonly prompts: readonly PromptRequest[];
	/** Choices per prompt. */
	readonly choices: number;
	readonly rules: ChoiceRules;
	readonly format: ChunkFormat;
	readonly usage: UsageMode;
	/** Annotation events in front of a stream: name and text. */
	readonly annotations: readonly (readonly [string, string])[];
	/** What `nvext.extra_fields` asked for. */
	readonly report: NvextReport;
	/** Sent to workers with the request. */
	readonly headers: Readonly<Record<string, string>>;
	readonly dispatch: DispatchOptions;
	readonly migration: MigrationLimits;
	/** For sets whose prompts are computed by others. */
	readonly prefill: PrefillSettings;
	readonly keepAliveMs: number;
	/** Takes the text for the request's span; undefined: it is not wanted there. */
	readonly content?: ContentAttribute | undefined;
	/** How long after a worker has taken the request an error can still become a plain answer, milliseconds. */
	readonly errorPeekMs: number;
}

/** What {@link Generation} needs from the HTTP side. */
export interface GenerationHost {
	/** Sends a whole JSON answer. */
	sendJson(response: ServerResponse, status: number, json: string): void;
	/** Sends an error answer. */
	sendFailure(response: ServerResponse, failure: Failure): void;
	failureOf(error: unknown, context?: FailureContext): Failure;
}

/**
 * Answers one request: sends its prompts to workers, turns their deltas into text and the text into an event stream or
 * one JSON answer. Everything from a worker's frame to the queued SSE text is plain calls without promises.
 */
export class Generation {
	readonly plan: GenerationPlan;
	readonly tracker: RequestTracker;
	private readonly response: ServerResponse;
	private readonly host: GenerationHost;
	private readonly writer: SseWriter | undefined;
	private readonly legs: Leg[];
	private unfinished: number;
	/** Some leg has had a delta. */
	private begun = false;
	private over = false;
	private peek: NodeJS.Timeout | undefined;

	constructor(plan: GenerationPlan, response: ServerResponse, tracker: RequestTracker, host: GenerationHost) {
		this.plan = plan;
		this.response = response;
		this.tracker = tracker;
		this.host = host;
		this.legs = plan.prompts.map((prompt, index) => new Leg(this, prompt, index));
		this.unfinished = this.legs.length;
		for (const { body } of plan.prompts) tracker.inputTokens += body.token_ids.length;
		if (!plan.stream) return;
		this.writer = new SseWriter(response, plan.keepAliveMs, {
			onBlocked: () => {
				for (const leg of this.legs) leg.dispatch.pause();
			},
			onDrain: () => {
				for (const leg of this.legs) leg.dispatch.resume();
			},
		});
	}

	start(): void {
		this.response.on("close", this.onClose);
		const { takesPrefill } = this.plan.set;
		this.tracker.enterStage("route", takesPrefill ? "prefill" : "aggregated");
		for (const leg of this.legs) leg.start();
		if (!takesPrefill) this.tracker.enterStage("dispatch", "aggregated");
	}

	/** The connection closed; nothing to do when the answer was complete. */
	private readonly onClose = (): void => {
		if (this.over) return;
		this.over = true;
		clearTimeout(this.peek);
		for (const leg of this.legs) leg.dispatch.kill();
		this.tracker.finish({ kind: "disconnected" });
	};

	// -- called by legs

	/** A prompt that takes two workers has come to this stage of its way. */
	onStage(name: "route" | "dispatch", phase: "prefill" | "decode"): void {
		if (!this.begun && !this.over) this.tracker.enterStage(name, phase);
	}

	/** All prompts were taken by workers. */
	onOpen(): void {
		const { writer } = this;
		if (writer === undefined || this.over || this.legs.some(({ opened }) => !opened)) return;
		if (this.plan.errorPeekMs === 0) writer.commit();
		else this.peek ??= setTimeout(() => writer.commit(), this.plan.errorPeekMs);
	}

	/** The first delta of a leg. */
	onFirstDelta(leg: Leg): void {
		if (!this.begun) {
			this.begun = true;
			this.tracker.enterStage(undefined);
			for (const [name, text] of this.plan.annotations) this.writer?.queue(annotationEvent(name, text));
		}
		// Each by itself: the log-probabilities of other prompts need not be there yet.
		if (leg.prompt.echo !== "" && this.writer !== undefined) leg.echo();
	}

	/**
	 * A delta of a choice was taken: `text` of it can be shown now. One delta makes at most one chunk, which says that
	 * the choice is finished when it is.
	 */
	onDelta(leg: Leg, choice: ChoiceState, text: string): void {
		const { writer, plan } = this;
		if (choice.index === 0) plan.content?.add(text);
		if (writer === undefined) {
			choice.text += text;
			return;
		}
		const logprobs = plan.rules.wantLogprobs ? choice.takeLogprobs() : undefined;
		const withRole = !choice.roleSent && plan.format.hasRoles;
		const reason = choice.finishReason;
		if (reason === undefined && text === "" && logprobs === undefined && !withRole) return;
		choice.roleSent = true;
		const usage = plan.usage.continuous ? leg.usage() : undefined;
		const nvext = plan.report.anything ? nvextJson(plan.report, leg, reason !== undefined) : undefined;
		if (reason === undefined) {
			writer.queue(plan.format.content(choice.index, text, withRole, logprobs, usage, nvext));
			return;
		}
		// Once: Dynamo's streams have them in nvext only.
		const { promptLogprobs } = plan.rules;
		const ofPrompt = promptLogprobs && !plan.report.promptLogprobs ? leg.promptLogprobs?.json() : undefined;
		writer.queue(plan.format.finish(choice.index, text, withRole, reason, logprobs, usage, nvext, ofPrompt));
	}

	/** An event of the worker that is no delta. */
	onEvent(name: string, comments: readonly string[]): void {
		if (!this.over) this.writer?.queue(commentEvent(name, comments));
	}

	onLegFinished(): void {
		this.unfinished--;
		if (this.unfinished > 0 || this.over) return;
		this.over = true;
		const { plan, writer } = this;
		const usage = this.usage();
		this.tracker.finishReason = this.legs[0]?.choices[0]?.finishReason;
		this.tracker.cachedTokens = usage.details?.cached_tokens ?? undefined;
		plan.content?.end();
		if (writer === undefined) {
			this.sendAnswer(usage);
			return;
		}
		if (plan.usage.final) writer.queue(plan.format.usage(usage));
		writer.end();
		this.tracker.finish({ kind: "success" });
	}

	onLegFailed(error: DynamoError): void {
		if (this.over) return;
		this.over = true;
		for (const leg of this.legs) leg.dispatch.kill();
		const failure = this.host.failureOf(error, { begun: this.legs.some((leg) => leg.begun) });
		clearTimeout(this.peek);
		this.tracker.finish({ kind: "failure", failure });
		if (this.writer?.committed) {
			this.writer.queue(failure.http.toSseEvent());
			this.writer.end();
		} else {
			this.writer?.discard();
			this.host.sendFailure(this.response, failure);
		}
	}

	private sendAnswer(usage: UsageCounts): void {
		const { plan } = this;
		// Where Dynamo's completions have them is nvext; its chat answers have them in both places.
		const withPromptLogprobs = plan.rules.promptLogprobs && (plan.format.hasRoles || !plan.report.promptLogprobs);
		const choices = this.legs.flatMap((leg) =>
			leg.choices
				.filter(({ begun }) => begun)
				.map((choice) => ({
					index: choice.index,
					text: leg.prompt.echo + choice.text,
					finishReason: choice.finishReason ?? "stop",
					logprobs: plan.rules.wantLogprobs ? leg.logprobsOf(choice) : undefined,
					promptLogprobs: withPromptLogprobs ? leg.promptLogprobs?.json() : undefined,
				})),
		);
		const first = this.legs[0] as Leg;
		const nvext = plan.report.anything ? nvextJson(plan.report, first, true) : undefined;
		const json = plan.format.answer(choices, usage, nvext);
		// Whoever has the answer finds it counted.
		this.tracker.finish({ kind: "success" });
		this.host.sendJson(this.response, 200, json);
	}

	private usage(): UsageCounts {
		const [first, ...others] = this.legs.map((leg) => leg.usage()) as [UsageCounts, ...UsageCounts[]];
		for (const { promptTokens, completionTokens, details, completionDetails } of others) {
			first.promptTokens += promptTokens;
			first.completionTokens += completionTokens;
			first.details = addDetails(first.details, details);
			first.completionDetails = addDetails(first.completionDetails, completionDetails);
		}
		return first;
	}
}

/** Member by member; what neither has stays unknown. */
function addDetails<T extends PromptTokensDetails | CompletionTokensDetails>(
	a: T | undefined,
	b: T | undefined,
): T | undefined {
	if (a === undefined || b === undefined) return a ?? b;
	const sum: Record<string, number | null | undefined> = { ...a };
	for (const [name, count] of Object.entries(b) as [string, number | null | undefined][]) {
		sum[name] = typeof count === "number" ? (sum[name] ?? 0) + count : sum[name];
	}
	return sum as unknown as T;
}
