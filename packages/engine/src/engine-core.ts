// SPDX-License-Identifier: Apache-2.0
// One engine without its thread: requests in, steps, outputs. Everything is synchronous; the owner calls `step`
// as long as there is work, and takes the outputs after each.

import { checkRequest } from "./check-request.js";
import type { EngineError, EngineRequest, EngineStats, FinishReason } from "./engine.js";
import type { SlotCopy } from "./kv-slots.js";
import type { ModelRunner } from "./model/model-runner.js";
import { Sampler } from "./sampler.js";
import { choiceCount } from "./sampling-params.js";
import { Scheduler, type StepPlan } from "./scheduler.js";
import { Sequence } from "./sequence.js";
import { StepOutputs } from "./step-outputs.js";

/** Measured on CPU: chunks of 64 cost no more per token than 256, and hold up decode rows a quarter as long. */
export const DEFAULT_CHUNK_SIZE = 64;
export const DEFAULT_BLOCK_SIZE = 16;

export interface EngineCoreOptions {
	/** Tokens per prefill chunk; default 64. */
	readonly chunkSize?: number | undefined;
	/** Tokens per block; default 16. */
	readonly blockSize?: number | undefined;
}

export class EngineCore {
	readonly outputs: StepOutputs = new StepOutputs();
	private readonly runner: ModelRunner;
	private readonly scheduler: Scheduler;
	private readonly sampler: Sampler;
	private readonly sequences = new Map<number, Sequence>();
	private readonly tokenIds: Int32Array[];
	private readonly lengths: Int32Array[];
	private readonly counters = {
		prefillTokens: 0,
		decodeTokens: 0,
		steps: 0,
		stepSeconds: 0,
		modelSeconds: 0,
		cacheQueryTokens: 0,
		cacheHitTokens: 0,
	};

	/** @param runner is used by nobody else; the owner closes it. */
	constructor(runner: ModelRunner, options: EngineCoreOptions = {}) {
		this.runner = runner;
		this.scheduler = new Scheduler({
			numSlots: runner.numSlots,
			maxModelLen: runner.maxModelLen,
			chunkSize: options.chunkSize ?? DEFAULT_CHUNK_SIZE,
			blockSize: options.blockSize ?? DEFAULT_BLOCK_SIZE,
		});
		this.sampler = new Sampler(runner.config.vocabSize);
		// One view per batch size, made once: a step allocates none.
		this.tokenIds = prefixViews(runner.numSlots);
		this.lengths = prefixViews(runner.numSlots);
	}

	/** Whether `step` would do something. */
	get hasWork(): boolean {
		return this.scheduler.hasWork;
	}

	get totalBlocks(): number {
		return this.scheduler.totalBlocks;
	}

	/**
	 * Queues all choices of a request, choice i under `handle + i`. A bad request becomes error outputs.
	 * @param handle not in use, and neither are the following n - 1.
	 */
	submit(handle: number, request: EngineRequest): void {
		const { maxModelLen, config } = this.runner;
		const choices = choiceCount(request.sampling);
		const error = checkRequest(request, { maxModelLen, vocabSize: config.vocabSize });
		if (error !== undefined) {
			for (let i = 0; i < choices; i++) this.outputs.addError(handle + i, error);
			return;
		}
		for (let i = 0; i < choices; i++) {
			const sequence = new Sequence(handle + i, i, request, maxModelLen);
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

	/** Computes one step. Never throws for a failing model: the sequences of the step end with an error. */
	step(): void {
		const begin = performance.now();
		const plan = this.scheduler.schedule();
		if (plan === undefined) return;
		try {
			this.copySlots(plan.copies);
			if (plan.kind === "prefill") this.prefill(plan);
			else this.decode(plan.batchSize);
		} catch (cause) {
			this.failStep(plan, cause);
		}
		this.counters.steps++;
		this.counters.stepSeconds += (performance.now() - begin) / 1000;
	}

	stats(): EngineStats {
		const { scheduler, counters } = this;
		return {
			running: scheduler.numRunning,
			waiting: scheduler.numWaiting,
			usedBlocks: scheduler.usedBlocks,
			totalBlocks: scheduler.totalBlocks,
			preemptions: 0,
			...counters,
		};
	}

	private prefill(plan: Extract<StepPlan, { kind: "prefill" }>): void {
		const { sequence, start, end, isLast } = plan;
		const { counters } = this;
		const begin = performance.now();
		const logits = this.runner.prefill(sequence.slot, sequence.tokens.subarray(start, end), start, isLast);
		counters.modelSeconds += (performance.now() - begin) / 1000;
		counters.prefillTokens += end - start;
		const copies: SlotCopy[] = [];
		const joined = this.scheduler.completePrefill(plan, copies);
		if (joined.length === 0) return;
		if (logits === undefined) throw new Error("the model gave no logits for the last chunk of a prompt");
		// Sampled before the copies, which may reuse the memory of the logits.
		for (const one of joined) {
			counters.cacheQueryTokens += one.promptLength;
			counters.cacheHitTokens += one.numCached;
			this.outputs.addStarted(one.handle, one.numCached);
			this.emit(one, logits, 0);
		}
		this.copySlots(copies);
	}

	private decode(batchSize: number): void {
		const { scheduler, counters, runner } = this;
		const tokenIds = this.tokenIds[batchSize]!;
		const lengths = this.lengths[batchSize]!;
		const rows: Sequence[] = [];
		for (let i = 0; i < batchSize; i++) {
			const sequence = scheduler.row(i);
			rows.push(sequence);
			tokenIds[i] = sequence.tokens[sequence.length - 1]!;
			lengths[i] = sequence.numComputed;
		}
		const begin = performance.now();
		const logits = runner.decode(batchSize, tokenIds, lengths);
		counters.modelSeconds += (performance.now() - begin) / 1000;
		const { vocabSize } = runner.config;
		for (let i = 0; i < batchSize; i++) {
			rows[i]!.numComputed++;
			this.emit(rows[i]!, logits, i * vocabSize);
		}
	}

	/** Samples a token for one sequence and says so. */
	private emit(sequence: Sequence, logits: Float32Array, offset: number): void {
		const token = this.sampler.sample(logits, offset, sequence);
		if (token < 0) {
			this.fail(sequence, { code: "internal", message: "the model gave no finite logit" });
			return;
		}
		this.counters.decodeTokens++;
		const finish = sequence.append(token);
		if (sequence.logprobs >= 0) {
			const logprobs = this.sampler.logprobs(logits, offset, token, sequence.logprobs);
			this.outputs.addLogprobs(sequence.handle, logprobs);
		}
		if (finish !== undefined) this.finish(sequence, finish);
		this.outputs.addToken(sequence.handle, token, finish);
	}

	private failStep(plan: StepPlan, cause: unknown): void {
		const text = cause instanceof Error ? cause.message : String(cause);
		const error: EngineError = { code: "internal", message: `the engine failed in a ${plan.kind} step: ${text}` };
		// A failed copy may have hit any slot, so nothing that runs can be trusted; a failed chunk concerns its prompt.
		const hit =
			plan.kind === "prefill" && plan.copies.length === 0 && plan.sequence.status === "prefilling"
				? [plan.sequence]
				: [...this.sequences.values()].filter((sequence) => sequence.status !== "waiting");
		for (const sequence of hit) this.fail(sequence, error);
		this.scheduler.forgetPrefixes();
	}

	private fail(sequence: Sequence, error: EngineError): void {
		this.finish(sequence, "error");
		this.outputs.addError(sequence.handle, error);
	}

	private finish(sequence: Sequence, reason: FinishReason): void {
		this.scheduler.finish(sequence, reason);
		this.sequences.delete(sequence.handle);
	}

	private copySlots(copies: readonly SlotCopy[]): void {
		for (const { from, to, length } of copies) this.runner.copySlot(from, to, length);
	}
}

/** views[n] are the first n elements of one array. */
function prefixViews(length: number): Int32Array[] {
	const all = new Int32Array(length);
	return Array.from({ length: length + 1 }, (_, n) => all.subarray(0, n));
}
