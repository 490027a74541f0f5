// SPDX-License-Identifier: Apache-2.0
import {
	type Annotated,
	type CompletionTokensDetails,
	type CompletionUsage,
	DynamoError,
	type EndpointRecord,
	type LLMEngineOutput,
	type PreprocessedRequest,
	type PromptTokensDetails,
} from "@dynamo-ts/protocols/internal";
import type { RoutingDecision } from "@dynamo-ts/router";
import type { ResponseSink } from "@dynamo-ts/runtime";
import { ChoiceState, type TokenLogprob } from "./choice-state.js";
import type { UsageCounts } from "./chunk-format.js";
import { Dispatch } from "./dispatch.js";
import type { Generation } from "./generation.js";
import { asDynamoError } from "./http-errors.js";
import { Continuation, isLoss } from "./migration.js";
import type { LegWorkers } from "./nvext-report.js";
import { PrefillLeg, type PrefillObserver } from "./prefill-leg.js";
import { PromptLogprobs } from "./prompt-logprobs.js";
import type { RequestTracker } from "./request-tracker.js";

/** One prompt of a request: becomes one request to a worker. */
export interface PromptRequest {
	readonly body: PreprocessedRequest;
	/** Text that is shown before what is generated (completions' `echo`). */
	readonly echo: string;
	/** Show the log-probabilities of its tokens, too. */
	readonly echoLogprobs: boolean;
}

/** One prompt on its way through a worker, or several one after the other; receives their streams as one. */
export class Leg implements ResponseSink, PrefillObserver {
	readonly prompt: PromptRequest;
	/** In the order of their numbers; all that were asked for. */
	readonly choices: ChoiceState[];
	readonly dispatch: Dispatch;
	/** `performance.now()`; for the report of timings. */
	sentAt = 0;
	firstAt: number | undefined;
	/** A worker has taken it. */
	opened = false;
	/** The workers that began; a stream that went on at others keeps them, as Dynamo does. */
	readonly workers: LegWorkers = {
		prefillId: undefined,
		prefillRank: undefined,
		decodeId: undefined,
		decodeRank: undefined,
		hitRate: undefined,
		queueDepth: undefined,
		prefilledAt: undefined,
	};
	readonly tracker: RequestTracker;
	/** Undefined when nobody wants them. */
	readonly promptLogprobs: PromptLogprobs | undefined;
	/** What came before the log-probabilities that stand in front of it; undefined when nothing has to wait. */
	private held: LLMEngineOutput[] | undefined;
	private readonly generation: Generation;
	private readonly continuation: Continuation | undefined;
	/** Tokens of one choice after which there is nothing left to generate. */
	private readonly mostTokens: number;
	private open: number;
	/** Another worker than the one that generates has computed the prompt. */
	private remotePrefill = false;
	private completionTokens = 0;
	/** With best_of the worker generates more than it sends; its count then is the one that is told. */
	private readonly workerCounts: boolean;
	private countedByWorker = 0;
	private promptTokens: number;
	private details: PromptTokensDetails | undefined;
	/** What the worker tells of its prompt counts no more: there are generated tokens in it. */
	private migrated = false;
	private completionDetails: CompletionTokensDetails | undefined;
	private over = false;

	constructor(generation: Generation, prompt: PromptRequest, index: number) {
		const { plan } = generation;
		this.generation = generation;
		this.tracker = generation.tracker;
		this.prompt = prompt;
		this.choices = Array.from(
			{ length: plan.choices },
			(_, i) => new ChoiceState(index * plan.choices + i, plan.rules, prompt.echo.length),
		);
		this.open = plan.choices;
		this.promptTokens = prompt.body.token_ids.length;
		this.workerCounts = (prompt.body.sampling_options.best_of ?? 0) > plan.choices;
		if (plan.report.promptLogprobs || (prompt.body.output_options.prompt_logprobs ?? null) !== null) {
			this.promptLogprobs = new PromptLogprobs(prompt.body.token_ids, prompt.echo, plan.rules);
			if (plan.stream && prompt.echoLogprobs) this.held = [];
		}
		// Legs of one request are requests of their own to workers, so each needs an id of its own.
		const id = plan.prompts.length === 1 ? plan.requestId : `${plan.requestId}-${index}`;
		const context = plan.set.contextLimit ?? Number.POSITIVE_INFINITY;
		const { token_ids, stop_conditions } = prompt.body;
		this.mostTokens = Math.min(stop_conditions.max_tokens ?? Number.POSITIVE_INFINITY, context - token_ids.length);
		this.continuation =
			plan.migration.limit > 0 ? new Continuation(prompt.body, plan.migration, this.mostTokens) : undefined;
		this.dispatch = new Dispatch(
			plan.set,
			{ id, payload: prompt.body, headers: plan.headers },
			prompt.body.token_ids,
			this,
			{
				...plan.dispatch,
				...(prompt.body.routing ? { routing: prompt.body.routing } : {}),
				...(this.continuation === undefined ? {} : { continuation: this.continuation }),
				onAttempt: (instance, decision) => this.onAttempt(instance.instance_id, decision),
				...(plan.set.takesPrefill ? { prefill: this.prefillLeg() } : {}),
			},
		);
	}

	start(): void {
		this.sentAt = performance.now();
		this.dispatch.start();
	}

	/** Shows the prompt, in streams that echo it. */
	echo(): void {
		const entries = this.prompt.echoLogprobs ? (this.promptLogprobs?.entries() ?? []) : [];
		for (const choice of this.choices) {
			choice.pendingLogprobs.push(...entries);
			this.generation.onDelta(this, choice, this.prompt.echo);
		}
	}

	/** The log-probabilities of a choice of an answer in one piece, those of an echoed prompt first. */
	logprobsOf(choice: ChoiceState): readonly TokenLogprob[] | undefined {
		const own = choice.takeLogprobs();
		const echoed = this.prompt.echoLogprobs ? (this.promptLogprobs?.entries() ?? []) : [];
		return echoed.length === 0 ? own : [...echoed, ...(own ?? [])];
	}

	/** Tokens have come. */
	get begun(): boolean {
		return this.completionTokens > 0;
	}

	usage(): UsageCounts {
		return {
			promptTokens: this.promptTokens,
			completionTokens: Math.max(this.completionTokens, this.countedByWorker),
			details: this.details,
			completionDetails: this.completionDetails,
		};
	}

	onOpen(): void {
		this.opened = true;
		this.generation.onOpen();
	}

	onItem(item: Annotated<unknown>): void {
		if (this.over) return;
		const output = item.data as LLMEngineOutput | null | undefined;
		if (output === null || output === undefined) {
			if (typeof item.event === "string") this.generation.onEvent(item.event, item.comment ?? []);
			return;
		}
		try {
			if (this.promptLogprobs !== undefined) this.acceptInOrder(output, this.promptLogprobs);
			else this.accept(output);
		} catch (error) {
			this.fail(asDynamoError(error));
		}
	}

	onEnd(): void {
		if (this.over) return;
		try {
			this.release();
		} catch (error) {
			this.fail(asDynamoError(error));
			return;
		}
		if (this.over) return;
		if (this.firstAt === undefined) {
			this.fail(new DynamoError("BackendProtocol", "the worker ended its stream without any output"));
			return;
		}
		// Some workers make one choice whatever n says. What they did not begin is left out, as Dynamo does.
		const begun = this.choices.filter((choice) => choice.begun);
		this.open -= this.choices.length - begun.length;
		for (const choice of begun) {
			if (choice.finishReason !== undefined) continue;
			// The worker said that it is done, so that is the end of the choice.
			this.deliver(choice, choice.finishQuietly());
		}
		if (!this.over) this.complete();
	}

	onError(error: DynamoError): void {
		if (!this.over && isLoss(error) && this.hasAllTokens()) this.accept({ token_ids: [], finish_reason: "length" });
		else this.fail(error);
	}

	private prefillLeg(): PrefillLeg {
		const { set, prefill, dispatch, choices } = this.generation.plan;
		return new PrefillLeg(set, prefill, dispatch, choices, this);
	}

	onPrefillAttempt({ instance_id }: EndpointRecord, decision: RoutingDecision | undefined): void {
		this.generation.onStage("dispatch", "prefill");
		if (this.begun) return;
		const { workers } = this;
		workers.prefillId = instance_id;
		workers.prefillRank = decision?.dpRank;
		workers.hitRate = hitRate(decision);
		workers.queueDepth = decision?.queueDepth;
		workers.prefilledAt = undefined;
		this.tracker.prefillWorkerId = instance_id;
		this.tracker.prefillWorkerRank = decision?.dpRank;
	}

	onPrefilled(outputs: readonly LLMEngineOutput[]): void {
		if (this.begun) return;
		this.workers.prefilledAt = performance.now();
		try {
			for (const output of outputs) this.promptLogprobs?.take(output);
		} catch (error) {
			this.fail(asDynamoError(error));
		}
	}

	onHandover(remote: boolean): void {
		this.generation.onStage("route", "decode");
		if (this.begun) return;
		this.remotePrefill = remote;
		if (remote) return;
		this.workers.prefilledAt = undefined;
		this.tracker.prefillWorkerId = undefined;
	}

	/** The prefill worker may say that it is done only after the first token. */
	private tellHandover(now: number): void {
		const { prefilledAt = now } = this.workers;
		this.generation.plan.set.router.onHandedOver((now - prefilledAt) / 1000);
	}

	private onAttempt(instanceId: bigint, decision: RoutingDecision | undefined): void {
		if (this.generation.plan.set.takesPrefill) this.generation.onStage("dispatch", "decode");
		if (this.begun) {
			this.migrated = true;
			return;
		}
		// Nothing of it was shown, so the next worker starts from the beginning.
		if (this.held !== undefined) this.held = [];
		const { workers } = this;
		workers.decodeId = instanceId;
		workers.decodeRank = decision?.dpRank;
		this.tracker.workerId = instanceId;
		this.tracker.workerRank = decision?.dpRank;
		if (this.remotePrefill) return;
		workers.prefillId = instanceId;
		workers.prefillRank = workers.decodeRank;
		workers.hitRate = hitRate(decision);
		workers.queueDepth = decision?.queueDepth;
	}

	/** The worker was lost after its last token: what is missing is only that it says so. */
	private hasAllTokens(): boolean {
		return this.choices.length === 1 && this.begun && this.completionTokens >= this.mostTokens;
	}

	/** Text that comes after an echoed prompt waits until the prompt's log-probabilities are there. */
	private acceptInOrder(output: LLMEngineOutput, wanted: PromptLogprobs): void {
		wanted.take(output);
		if (this.held === undefined) {
			this.accept(output);
			return;
		}
		this.held.push(output);
		if (wanted.arrived) this.release();
	}

	private release(): void {
		const held = this.held ?? [];
		this.held = undefined;
		for (const output of held) if (!this.over) this.accept(output);
	}

	private accept(output: LLMEngineOutput): void {
		const ids = output.token_ids;
		const index = output.index ?? 0;
		const choice = this.choices[index];
		if (!Array.isArray(ids)) {
			throw new DynamoError("BackendProtocol", "the worker sent an item without token_ids");
		}
		if (choice === undefined) {
			throw new DynamoError("BackendProtocol", `the worker sent choice ${index} of ${this.choices.length}`);
		}
		const usage = output.completion_usage;
		if (usage !== null && usage !== undefined) this.takeUsage(usage);
		const now = performance.now();
		if (this.firstAt === undefined) {
			this.firstAt = now;
			if (this.remotePrefill) this.tellHandover(now);
			this.generation.onFirstDelta(this);
		}
		if (choice.finishReason !== undefined) return;
		choice.begun = true;
		const before = choice.tokens;
		const text = choice.accept(output);
		const count = choice.tokens - before;
		if (count > 0) {
			this.continuation?.push(ids);
			this.completionTokens += count;
			this.tracker.onTokens(count, now, performance.now() - now);
		}
		this.deliver(choice, text);
	}

	/** Generated tokens are counted here; what the prompt came to, the worker knows best. */
	private takeUsage(usage: CompletionUsage): void {
		if (this.migrated) return;
		if (this.workerCounts && typeof usage.completion_tokens === "number")
			this.countedByWorker = usage.completion_tokens;
		if (typeof usage.prompt_tokens === "number") this.promptTokens = usage.prompt_tokens;
		this.details = usage.prompt_tokens_details ?? this.details;
		this.completionDetails = usage.completion_tokens_details ?? this.completionDetails;
	}

	private deliver(choice: ChoiceState, text: string): void {
		this.generation.onDelta(this, choice, text);
		if (choice.finishReason === undefined) return;
		this.open--;
		if (this.open === 0) this.complete();
	}

	private complete(): void {
		this.over = true;
		// Where the end was found here the worker is still at work. Where it said so itself its stream ends by itself.
		if (this.choices.some(({ stoppedHere }) => stoppedHere)) this.dispatch.kill(true);
		else this.dispatch.answered();
		this.generation.onLegFinished();
	}

	private fail(error: DynamoError): void {
		if (this.over) return;
		this.over = true;
		this.dispatch.judge(error);
		this.generation.onLegFailed(error);
	}
}

/** The share of a prompt's blocks that its worker has cached; undefined where nobody knows. */
function hitRate(decision: RoutingDecision | undefined): number | undefined {
	if (decision === undefined) return undefined;
	return decision.promptBlocks === 0 ? 0 : decision.overlapBlocks / decision.promptBlocks;
}
