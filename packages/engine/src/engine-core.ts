// SPDX-License-Identifier: Apache-2.0
// One engine without its thread: requests in, steps, outputs. Everything is synchronous; the owner calls `step`
// as long as there is work, and takes the outputs after each.

import { BlockManager } from "./cache/block-manager.js";
import { checkRequest } from "./check-request.js";
import type { EngineError, EngineRequest, EngineStats, FinishReason } from "./engine.js";
import type { ModelRunner, StepLogits } from "./model/model-runner.js";
import { Sampler } from "./sampler.js";
import { choiceCount } from "./sampling-params.js";
import { Scheduler } from "./scheduler.js";
import { Sequence } from "./sequence.js";
import { StepOutputs } from "./step-outputs.js";

export interface EngineCoreOptions {
	/** Tokens in one step; default 128, or as many as there may be sequences. */
	readonly maxNumBatchedTokens?: number | undefined;
	/** Whether prompts share blocks with those before them; default true. */
	readonly enablePrefixCaching?: boolean | undefined;
	/** Gather cache events for `outputs`; default false. */
	readonly kvEvents?: boolean | undefined;
}

/** Tokens per step unless more sequences may run: on CPU larger chunks of prompts are no faster per token. */
const DEFAULT_BATCHED_TOKENS = 128;
/** While sequences generate, prompts may take about so much of a step, in seconds. */
const MIXED_PREFILL_SECONDS = 0.1;
/** The least prompt tokens of such a step. */
const MIN_MIXED_PREFILL = 16;
/** Weight of the newest measurement in the running mean of the time per prompt token. */
const PACE_WEIGHT = 0.2;

/** Tokens in one step as asked, or by default. */
export function batchedTokens(asked: number | undefined, maxNumSeqs: number): number {
	return asked ?? Math.max(DEFAULT_BATCHED_TOKENS, maxNumSeqs);
}

export class EngineCore {
	readonly outputs: StepOutputs = new StepOutputs();
	readonly blocks: BlockManager;
	readonly maxNumBatchedTokens: number;
	private readonly runner: ModelRunner;
	private readonly scheduler: Scheduler;
	private readonly sampler: Sampler;
	/** Tokens of one sequence: what the model and the cache allow. */
	private readonly maxLength: number;
	private readonly sequences = new Map<number, Sequence>();
	private readonly counters = {
		prefillTokens: 0,
		decodeTokens: 0,
		steps: 0,
		stepSeconds: 0,
		modelSeconds: 0,
		cacheQueryTokens: 0,
		cacheHitTokens: 0,
	};
	/** Running mean of the time per prompt token, in seconds; 0 before the first measurement. */
	private prefillPace = 0;
	/** The sequence whose blocks are being named; one callback serves all. */
	private naming: Sequence | undefined;
	private readonly persist = (index: number, block: number): void =>
		this.runner.persist(this.naming!.handle, index, block);

	/** @param runner is used by nobody else; the owner closes it. */
	constructor(runner: ModelRunner, options: EngineCoreOptions = {}) {
		this.runner = runner;
		this.maxNumBatchedTokens = batchedTokens(options.maxNumBatchedTokens, runner.maxNumSeqs);
		this.maxLength = Math.min(runner.maxModelLen, runner.numBlocks * runner.blockSize);
		this.blocks = new BlockManager({
			numBlocks: runner.numBlocks,
			blockSize: runner.blockSize,
			enablePrefixCaching: options.enablePrefixCaching,
			...(options.kvEvents === true && { onEvent: (event) => this.outputs.addKvEvent(event) }),
		});
		this.scheduler = new Scheduler({
			maxNumSeqs: runner.maxNumSeqs,
			maxNumBatchedTokens: this.maxNumBatchedTokens,
			blocks: this.blocks,
		});
		this.sampler = new Sampler(runner.config.vocabSize);
	}

	/** Whether `step` would do something. */
	get hasWork(): boolean {
		return this.scheduler.hasWork;
	}

	get totalBlocks(): number {
		return this.blocks.numBlocks;
	}

	/**
	 * Queues all choices of a request, choice i under `handle + i`. A bad request becomes error outputs.
	 * @param handle not in use, and neither are the following n - 1.
	 */
	submit(handle: number, request: EngineRequest): void {
		const { maxLength } = this;
		const choices = choiceCount(request.sampling);
		const error = checkRequest(request, { maxModelLen: maxLength, vocabSize: this.runner.config.vocabSize });
		if (error !== undefined) {
			for (let i = 0; i < choices; i++) this.outputs.addError(handle + i, error);
			return;
		}
		for (let i = 0; i < choices; i++) {
			const sequence = new Sequence(handle + i, i, request, maxLength, this.blocks.blockSize);
			if (sequence.maxTokens <= 0) {
				this.outputs.addFinish(handle + i, "length");
				continue;
			}
			this.sequences.set(handle + i, sequence);
			this.scheduler.add(sequence);
		}
	}

	/** Ends one sequence with "cancelled"; does nothing when it has ended. */
	abort(handle: number): void {
		const sequence = this.sequences.get(handle);
		if (sequence === undefined) return;
		this.finish(sequence, "cancelled");
		this.outputs.addFinish(handle, "cancelled");
	}

	/** Makes nothing in the cache findable any more. */
	clearCache(): void {
		this.blocks.clear();
	}

	/** Computes one step. Never throws for a failing model: the sequences of the step end with an error. */
	step(): void {
		const begin = performance.now();
		const { scheduler, runner, counters } = this;
		if (this.prefillPace > 0) {
			const tokens = Math.floor(MIXED_PREFILL_SECONDS / this.prefillPace);
			scheduler.mixedPrefillTokens = Math.max(MIN_MIXED_PREFILL, tokens);
		}
		const plan = scheduler.schedule();
		if (plan === undefined) return;
		for (const sequence of plan.preempted) runner.release(sequence.handle);
		const rows = plan.rows;
		if (rows.length > 0) {
			try {
				const started = performance.now();
				const logits = runner.execute(rows);
				const seconds = (performance.now() - started) / 1000;
				counters.modelSeconds += seconds;
				this.measurePace(rows, seconds);
				this.take(rows, logits);
			} catch (cause) {
				this.failStep(rows, cause);
			}
		}
		counters.steps++;
		counters.stepSeconds += (performance.now() - begin) / 1000;
	}

	stats(): EngineStats {
		const { scheduler, blocks, counters } = this;
		return {
			running: scheduler.numRunning,
			waiting: scheduler.numWaiting,
			usedBlocks: blocks.numUsed,
			totalBlocks: blocks.numBlocks,
			cachedBlocks: blocks.numCached,
			preemptions: scheduler.numPreemptions,
			...counters,
		};
	}

	/** Turns the logits of a step into tokens and ends. */
	private take(rows: readonly Sequence[], logits: StepLogits): void {
		const { counters } = this;
		let next = 0;
		for (const sequence of rows) {
			const first = next;
			next += sequence.wanted;
			const computed = sequence.end - sequence.numDrafts;
			if (sequence.isPrefill) {
				counters.prefillTokens += sequence.end - sequence.start;
				this.tellComputed(sequence, computed);
				if (sequence.isPrefilling) continue;
				if (sequence.outputLength === 0) {
					counters.cacheQueryTokens += sequence.promptLength;
					counters.cacheHitTokens += sequence.numCached;
					this.outputs.addStarted(sequence.handle, sequence.numCached);
				}
				this.emit(sequence, logits.row(next - 1));
				continue;
			}
			this.tellComputed(sequence, computed);
			this.emit(sequence, logits.row(first));
		}
	}

	private tellComputed(sequence: Sequence, computed: number): void {
		this.naming = sequence;
		this.scheduler.computed(sequence, computed, this.persist);
	}

	/** Samples a token for one sequence and says so. */
	private emit(sequence: Sequence, logits: Float32Array): void {
		const token = this.sampler.sample(logits, 0, sequence);
		if (token < 0) {
			this.fail(sequence, { code: "internal", message: "the model gave no finite logit" });
			return;
		}
		this.counters.decodeTokens++;
		const finish = sequence.append(token);
		if (sequence.logprobs >= 0) {
			const logprobs = this.sampler.logprobs(logits, 0, token, sequence.logprobs);
			this.outputs.addLogprobs(sequence.handle, logprobs);
		}
		if (finish !== undefined) this.finish(sequence, finish);
		this.outputs.addToken(sequence.handle, token, finish);
	}

	private measurePace(rows: readonly Sequence[], seconds: number): void {
		let tokens = 0;
		for (const sequence of rows) {
			// The share of generating rows would have to be guessed: steps of prompts alone tell enough.
			if (!sequence.isPrefill) return;
			tokens += sequence.end - sequence.start;
		}
		// A short chunk says more about the fixed cost of a step than about a token.
		if (tokens < MIN_MIXED_PREFILL) return;
		const pace = seconds / tokens;
		this.prefillPace = this.prefillPace === 0 ? pace : this.prefillPace + PACE_WEIGHT * (pace - this.prefillPace);
	}

	private failStep(rows: readonly Sequence[], cause: unknown): void {
		const text = cause instanceof Error ? cause.message : String(cause);
		const error: EngineError = { code: "internal", message: `the engine failed in a step: ${text}` };
		// Not the rows that had ended before the error.
		for (const sequence of [...rows]) if (sequence.status === "running") this.fail(sequence, error);
		// What the step wrote is in doubt, and so is what was shared from it.
		this.blocks.clear();
	}

	private fail(sequence: Sequence, error: EngineError): void {
		this.finish(sequence, "error");
		this.outputs.addError(sequence.handle, error);
	}

	private finish(sequence: Sequence, reason: FinishReason): void {
		if (sequence.status === "running") this.runner.release(sequence.handle);
		this.scheduler.finish(sequence, reason);
		this.sequences.delete(sequence.handle);
	}
}
