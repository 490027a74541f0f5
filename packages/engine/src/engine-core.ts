// SPDX-License-Identifier: Apache-2.0
// One engine without its thread: requests in, steps, outputs. Everything is synchronous; the owner calls `step`
// as long as there is work, and takes the outputs after each.

import { BlockManager } from "./cache/block-manager.js";
import { checkRequest } from "./check-request.js";
import type { EngineError, EngineRequest, EngineStats, FinishReason, StepReport } from "./engine.js";
import { createHeldStates, HeldBlocks } from "./kv/held-blocks.js";
import { LengthTally } from "./length-tally.js";
import { DEFAULT_BATCHED_TOKENS } from "./model/cache-memory.js";
import type { ModelRunner, StepLogits } from "./model/model-runner.js";
import { NgramProposer } from "./ngram-proposer.js";
import { Sampler } from "./sampler.js";
import { choiceCount } from "./sampling-params.js";
import { Scheduler } from "./scheduler.js";
import { Sequence } from "./sequence.js";
import { StepOutputs } from "./step-outputs.js";
import type { TokenMask } from "./token-mask.js";

/** Guessing of tokens, which are then checked several in one step; the text stays what it is. */
export interface SpeculativeOptions {
	/** "ngram": what followed the last tokens when they occurred before. */
	readonly method: "ngram";
	/** Most guesses per sequence and step; default 8. */
	readonly numTokens?: number | undefined;
	/** Only while at most so many sequences generate: a full batch has no time to spare. Default 2, on a GPU 16. */
	readonly maxBatch?: number | undefined;
}

export interface EngineCoreOptions {
	/** Absent: no guesses. */
	readonly speculative?: SpeculativeOptions | undefined;
	/** Restricts what choice `choice` of a request may say; undefined: it is free. */
	readonly tokenMask?: ((request: EngineRequest, choice: number) => TokenMask | undefined) | undefined;
	/** Tokens in one step; default 128, or as many as there may be sequences. */
	readonly maxNumBatchedTokens?: number | undefined;
	/** Whether prompts share blocks with those before them; default true. */
	readonly enablePrefixCaching?: boolean | undefined;
	/** Gather cache events for `outputs`; default false. */
	readonly kvEvents?: boolean | undefined;
	/** See `createHeldStates`; absent: nobody outside reads what is kept. */
	readonly heldStates?: Int32Array | undefined;
}

/** Blocks of ended requests may take so much of the cache. */
const MAX_HELD_SHARE = 0.5;
/** While sequences generate, prompts may take about so much of a step, in seconds. */
const MIXED_PREFILL_SECONDS = 0.1;
/** The least prompt tokens of such a step. */
const MIN_MIXED_PREFILL = 16;
/** Defaults of `SpeculativeOptions`. */
const DRAFT_TOKENS = 8;
const DRAFT_BATCH = { cpu: 2, cuda: 16 } as const;
/** Weight of the newest measurement in the running mean of the time per prompt token. */
const PACE_WEIGHT = 0.2;

/** Tokens in one step as asked, or by default. */
export function batchedTokens(
	asked: number | undefined,
	{ device, maxNumSeqs }: Pick<ModelRunner, "device" | "maxNumSeqs">,
): number {
	return asked ?? Math.max(DEFAULT_BATCHED_TOKENS[device], maxNumSeqs);
}

export class EngineCore {
	readonly outputs: StepOutputs = new StepOutputs();
	readonly blocks: BlockManager;
	readonly maxNumBatchedTokens: number;
	/** Each step leaves a report in `outputs`. */
	reportSteps = false;
	private readonly runner: ModelRunner;
	private readonly scheduler: Scheduler;
	private readonly sampler: Sampler;
	private readonly proposer: NgramProposer | undefined;
	private readonly tokenMask: EngineCoreOptions["tokenMask"];
	/** Tokens of one sequence: what the model and the cache allow. */
	private readonly maxLength: number;
	private readonly held: HeldBlocks;
	private readonly sequences = new Map<number, Sequence>();
	/** Sequences whose blocks somebody fills, ended ones too. */
	private readonly fetching = new Map<number, Sequence>();
	private readonly counters = {
		prefillTokens: 0,
		decodeTokens: 0,
		steps: 0,
		stepSeconds: 0,
		modelSeconds: 0,
		cacheQueryTokens: 0,
		cacheHitTokens: 0,
		draftTokens: 0,
		acceptedTokens: 0,
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
		this.maxNumBatchedTokens = batchedTokens(options.maxNumBatchedTokens, runner);
		this.maxLength = Math.min(runner.maxModelLen, runner.numBlocks * runner.blockSize);
		this.blocks = new BlockManager({
			numBlocks: runner.numBlocks,
			blockSize: runner.blockSize,
			enablePrefixCaching: options.enablePrefixCaching,
			...(options.kvEvents === true && { onEvent: (event) => this.outputs.addKvEvent(event) }),
		});
		this.held = new HeldBlocks({
			blocks: this.blocks,
			states: options.heldStates ?? createHeldStates(),
			maxBlocks: Math.floor(runner.numBlocks * MAX_HELD_SHARE),
			onGivenUp: (id) => this.outputs.addGivenUp(id),
		});
		const { speculative } = options;
		this.tokenMask = options.tokenMask;
		this.proposer =
			speculative &&
			new NgramProposer({
				numTokens: speculative.numTokens ?? DRAFT_TOKENS,
				maxBatch: speculative.maxBatch ?? DRAFT_BATCH[runner.device],
			});
		this.scheduler = new Scheduler({
			maxNumSeqs: runner.maxNumSeqs,
			maxNumBatchedTokens: this.maxNumBatchedTokens,
			blocks: this.blocks,
			drafts: this.proposer,
			reclaim: () => this.held.giveUpOldest(),
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
	 * @param fetch the prompt's keys and values can be had from elsewhere: see `StepMessage.fetches`.
	 */
	submit(handle: number, request: EngineRequest, fetch = false): void {
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
			sequence.tokenMask = this.tokenMask?.(request, i);
			sequence.wantsFetch = fetch && i === 0 && sequence.promptLogprobs < 0;
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

	/**
	 * Copies blocks that are kept.
	 * @param blocks of `HeldKv.blocks`.
	 * @returns undefined when they are not kept any more.
	 */
	readHeld(id: number, blocks: readonly number[]): ArrayBuffer | undefined {
		const kept = this.held.find(id);
		if (kept === undefined || !blocks.every((block) => kept.includes(block))) return undefined;
		const { blockBytes } = this.runner;
		const data = new ArrayBuffer(blocks.length * blockBytes);
		blocks.forEach((block, i) => {
			this.runner.readBlock(block, new Uint8Array(data, i * blockBytes, blockBytes));
		});
		return data;
	}

	/** Frees what is kept; nobody may be reading it. Unknown ids are ignored. */
	releaseHeld(id: number): void {
		this.held.release(id);
	}

	/** Fills block number `index` of a sequence that fetches. */
	writeFetched(handle: number, index: number, data: Uint8Array): void {
		const sequence = this.fetching.get(handle);
		if (sequence !== undefined && index < sequence.numBlocks) this.runner.writeBlock(sequence.blocks[index]!, data);
	}

	/** What a sequence fetches is there, or will not come. */
	fetched(handle: number, complete: boolean): void {
		const sequence = this.fetching.get(handle);
		if (sequence === undefined) return;
		this.fetching.delete(handle);
		this.scheduler.endFetch(sequence, complete);
	}

	/** Makes nothing in the cache findable any more. */
	clearCache(): void {
		this.blocks.clear();
	}

	/**
	 * Computes one step. Never throws for a failing model: the sequences of the step end with an error.
	 * @returns false when there was nothing to do before somebody fills or frees blocks.
	 */
	step(): boolean {
		const begin = performance.now();
		const { scheduler, runner, counters } = this;
		if (this.prefillPace > 0) {
			const tokens = Math.floor(MIXED_PREFILL_SECONDS / this.prefillPace);
			scheduler.mixedPrefillTokens = Math.max(MIN_MIXED_PREFILL, tokens);
		}
		const plan = scheduler.schedule();
		if (plan === undefined) return false;
		for (const sequence of plan.fetching) this.beginFetch(sequence);
		for (const sequence of plan.preempted) runner.release(sequence.handle);
		const rows = plan.rows;
		const held = this.reportSteps ? rowLengths(rows) : undefined;
		if (rows.length > 0) {
			try {
				this.measurePace(rows, this.compute(rows));
			} catch (cause) {
				this.recover(rows, cause);
			}
		}
		const seconds = (performance.now() - begin) / 1000;
		counters.steps++;
		counters.stepSeconds += seconds;
		if (held !== undefined) this.outputs.setReport({ seconds, ...held, ...waitingLengths(scheduler.waitingSequences) });
		return true;
	}

	private beginFetch(sequence: Sequence): void {
		const { handle, blocks, numNamed, length } = sequence;
		this.fetching.set(handle, sequence);
		const tokens = length - 1;
		const wanted = Array.from(blocks.subarray(numNamed, this.blocks.blocksFor(tokens)));
		this.outputs.addFetch({ handle, tokens, firstBlock: numNamed, blocks: wanted });
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
			heldBlocks: this.held.blockCount,
			...counters,
		};
	}

	/** Runs rows and takes what they give. @returns the seconds in the model. */
	private compute(rows: readonly Sequence[]): number {
		const started = performance.now();
		const logits = this.runner.execute(rows);
		const seconds = (performance.now() - started) / 1000;
		this.counters.modelSeconds += seconds;
		this.take(rows, logits);
		return seconds;
	}

	/** Turns the logits of a step into tokens and ends. */
	private take(rows: readonly Sequence[], logits: StepLogits): void {
		let next = 0;
		for (const sequence of rows) {
			const first = next;
			next += sequence.wanted;
			if (sequence.isPrefill) this.takePrompt(sequence, logits, first);
			else this.takeGenerated(sequence, logits, first);
		}
	}

	private takePrompt(sequence: Sequence, logits: StepLogits, first: number): void {
		const { counters, outputs } = this;
		const { start, end, wanted, promptLength } = sequence;
		counters.prefillTokens += end - start;
		if (sequence.promptLogprobs >= 0 && sequence.outputLength === 0) {
			if (start === 0) sequence.promptEntries = [null];
			// A token's logits tell of the one behind it.
			for (let i = start; i < Math.min(end, promptLength - 1); i++) {
				const token = sequence.tokens[i + 1]!;
				const row = logits.row(first + i - start);
				sequence.promptEntries.push(this.sampler.promptLogprob(row, 0, token, sequence.promptLogprobs));
			}
		}
		this.tellComputed(sequence, end);
		if (sequence.isPrefilling) return;
		if (sequence.outputLength === 0) {
			counters.cacheQueryTokens += promptLength;
			counters.cacheHitTokens += sequence.numCached;
			outputs.addStarted(sequence.handle, sequence.numCached, (performance.now() - sequence.admittedAt) / 1000);
			if (sequence.promptLogprobs >= 0) outputs.addPromptLogprobs(sequence.handle, sequence.promptEntries);
		}
		this.emit(sequence, logits, first + wanted - 1);
	}

	/** A token, and one more behind each guess that was right. */
	private takeGenerated(sequence: Sequence, logits: StepLogits, first: number): void {
		const { numDrafts } = sequence;
		const known = sequence.length;
		this.tellComputed(sequence, known);
		let right = 0;
		for (;;) {
			// What was guessed is drawn all the same: the text is that without guesses, whatever the sampling.
			const guess = right < numDrafts ? sequence.tokens[known + right]! : -1;
			const token = this.emit(sequence, logits, first + right);
			if (token < 0 || token !== guess) break;
			right++;
			if (sequence.status !== "running") break;
		}
		if (numDrafts > 0) {
			this.counters.draftTokens += numDrafts;
			this.counters.acceptedTokens += right;
			this.proposer?.learn(sequence, numDrafts, right);
		}
		if (right > 0 && sequence.status === "running") this.tellComputed(sequence, known + right);
	}

	private tellComputed(sequence: Sequence, computed: number): void {
		this.naming = sequence;
		this.scheduler.computed(sequence, computed, this.persist);
	}

	/** Draws a token for one sequence and says so. @returns the token, or -1 when there was none to draw. */
	private emit(sequence: Sequence, logits: StepLogits, index: number): number {
		const token = this.draw(sequence, logits, index);
		if (token < 0) {
			const masked = sequence.allowedTokens !== undefined || sequence.maskedIds.length > 0;
			const message = masked ? "no token is left that may come next" : "the model gave no finite logit";
			this.fail(sequence, { code: "internal", message });
			return -1;
		}
		this.counters.decodeTokens++;
		const finish = sequence.append(token);
		if (sequence.logprobs >= 0) {
			const logprobs = this.sampler.logprobs(logits.row(index), 0, token, sequence.logprobs);
			this.outputs.addLogprobs(sequence.handle, logprobs);
		}
		if (finish !== undefined) this.finish(sequence, finish);
		this.outputs.addToken(sequence.handle, token, finish);
		return token;
	}

	private draw(sequence: Sequence, logits: StepLogits, index: number): number {
		const { top } = logits;
		if (top !== undefined) {
			const at = index * top.k;
			const token = this.sampler.sampleTop(top.ids, top.logits, top.k, at, top.logSumExp[index]!, sequence);
			if (token >= 0) return token;
		}
		return this.sampler.sample(logits.row(index), 0, sequence);
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

	/**
	 * After a step that failed: each of its rows by itself, so that only those fail that cannot be computed. A row that
	 * was computed already is computed again, to the same effect.
	 */
	private recover(rows: readonly Sequence[], cause: unknown): void {
		// What the step wrote is in doubt, and so is what was shared from it.
		this.blocks.clear();
		const left = rows.filter(({ status, numComputed, start }) => status === "running" && numComputed === start);
		for (const sequence of left) {
			let reason = cause;
			if (left.length > 1) {
				try {
					this.compute([sequence]);
					continue;
				} catch (again) {
					reason = again;
				}
			}
			if (sequence.status !== "running") continue;
			const text = reason instanceof Error ? reason.message : String(reason);
			this.fail(sequence, { code: "internal", message: `the engine failed in a step: ${text}` });
		}
	}

	/** Keeps the blocks of a sequence's prompt. */
	private hold(sequence: Sequence): void {
		const { handle, promptLength } = sequence;
		const count = this.blocks.blocksFor(promptLength);
		const ids = Array.from(sequence.blocks.subarray(0, count));
		// What can be found has been persisted; the rest lives with the sequence so far.
		ids.forEach((block, i) => {
			if (!this.blocks.isNamed(block)) this.runner.persist(handle, i, block);
		});
		const id = this.held.keep(sequence, count);
		if (id !== undefined) this.outputs.addHeld(handle, { id, tokens: promptLength, blocks: ids });
	}

	private fail(sequence: Sequence, error: EngineError): void {
		this.finish(sequence, "error");
		this.outputs.addError(sequence.handle, error);
	}

	private finish(sequence: Sequence, reason: FinishReason): void {
		if (sequence.status === "running") {
			if (sequence.holdsKv && reason !== "cancelled" && reason !== "error") this.hold(sequence);
			this.runner.release(sequence.handle);
		}
		this.scheduler.finish(sequence, reason);
		this.sequences.delete(sequence.handle);
	}
}

/** What a step is about to compute. */
function rowLengths(rows: readonly Sequence[]): Pick<StepReport, "prefill" | "decode"> {
	const prefill = new LengthTally();
	const decode = new LengthTally();
	let cachedTokens = 0;
	for (const { isPrefill, start, end, length } of rows) {
		if (!isPrefill) {
			decode.add(length);
			continue;
		}
		prefill.add(end - start);
		cachedTokens += start;
	}
	return { prefill: { ...prefill.summary(), cachedTokens }, decode: decode.summary() };
}

/** What waits: prompts, and sequences that had to give way. */
function waitingLengths(waiting: readonly Sequence[]): Pick<StepReport, "waitingPrefill" | "waitingDecode"> {
	const prompts = new LengthTally();
	const texts = new LengthTally();
	for (const { length, outputLength } of waiting) (outputLength === 0 ? prompts : texts).add(length);
	return { waitingPrefill: prompts.summary(), waitingDecode: texts.summary() };
}
