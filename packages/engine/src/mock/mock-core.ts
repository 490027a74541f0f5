// SPDX-License-Identifier: Apache-2.0
// The simulated engine without its clock: which sequences take part in a step, how long it takes, what it gives.
// Continuous batching as vLLM does it: running sequences first, then waiting ones while sequences, tokens and blocks last.

import type { BlocksStored, KvCacheEvent, StoredBlock } from "@dynamo-ts/protocols/internal";
import type { PromptHashes } from "../cache/prompt-hashes.js";
import { checkRequest } from "../check-request.js";
import type { EngineRequest, EngineStats, FinishReason, StepReport } from "../engine.js";
import { LengthTally } from "../length-tally.js";
import { choiceCount } from "../sampling-params.js";
import { Sequence } from "../sequence.js";
import { StepOutputs } from "../step-outputs.js";
import { type BlockHash, hashText, MockBlockPool } from "./mock-block-pool.js";
import { decodeMilliseconds, prefillMilliseconds } from "./mock-timing.js";

export interface MockCoreOptions {
	/** Blocks of the cache; default 16384. */
	readonly numGpuBlocks?: number | undefined;
	/** Tokens per block; default 64. */
	readonly blockSize?: number | undefined;
	/** Sequences per step; default 256. */
	readonly maxNumSeqs?: number | undefined;
	/** Tokens per step; default 8192. */
	readonly maxNumBatchedTokens?: number | undefined;
	/** Tokens of prompt and output together; default: what the cache holds. */
	readonly maxModelLen?: number | undefined;
	/** Whether blocks of earlier requests are used again; default true. */
	readonly enablePrefixCaching?: boolean | undefined;
	/** Whether a prompt may be spread over steps; default true. */
	readonly enableChunkedPrefill?: boolean | undefined;
	/** Who gives way when blocks run out: the newest ("lifo", default) or the oldest running request. */
	readonly preemptionMode?: "lifo" | "fifo" | undefined;
	/** Divides every time; 0 = no time at all. Default 1. */
	readonly speedupRatio?: number | undefined;
	/** Divides decode times once more, 0 = no time at all; default 1. */
	readonly decodeSpeedupRatio?: number | undefined;
	/** Prompt ids must be below it. Default: anything goes, and 32000 for what is generated. */
	readonly vocabSize?: number | undefined;
	/** Generated ids are first .. end - 1, to keep clear of special tokens; default: the vocabulary. */
	readonly tokenIdRange?: readonly [first: number, end: number] | undefined;
}

interface MockSequence {
	readonly sequence: Sequence;
	/** Names of its full blocks, from the start. */
	hashes: BlockHash[];
	/** Blocks without a name that it holds. */
	unnamed: number;
	/** Tokens that the step in progress computes. */
	planned: number;
	/** What `knownBlocks` gave; a request that waits is looked at in every step. */
	known: BlockHash[] | undefined;
}

const MAX_TOKENS_REQUIRED = "`max_output_tokens` (or `max_tokens`) is required by the mocker worker";

export class MockCore {
	readonly outputs: StepOutputs = new StepOutputs();
	readonly blockSize: number;
	readonly maxNumSeqs: number;
	readonly maxNumBatchedTokens: number;
	readonly maxModelLen: number;
	readonly totalBlocks: number;
	private readonly options: MockCoreOptions;
	/** Gather what the cache tells; off until somebody listens. */
	collectKvEvents = false;
	private kvEvents: KvCacheEvent[] = [];
	private evicted: bigint[] = [];
	/** The run of blocks that the next one may belong to. */
	private storing:
		| { parentHash: bigint | undefined; blocks: StoredBlock[]; tokenIds: number[]; cacheSalt: string | undefined }
		| undefined;
	private stepMs = 0;
	private readonly prefilling = new LengthTally();
	private readonly decoding = new LengthTally();
	private prefillCached = 0;
	/** Lengths of what waits: prompts, and sequences that had to give way. */
	private readonly waitingPrompts = new LengthTally();
	private readonly waitingTexts = new LengthTally();
	private readonly pool: MockBlockPool;
	private readonly firstId: number;
	private readonly idSpan: number;
	private readonly sequences = new Map<number, MockSequence>();
	/** Highest priority first, then first come; preempted ones at the front. */
	private readonly waiting: MockSequence[] = [];
	/** In order of admission. */
	private running: MockSequence[] = [];
	private readonly counters = {
		prefillTokens: 0,
		decodeTokens: 0,
		steps: 0,
		stepSeconds: 0,
		modelSeconds: 0,
		preemptions: 0,
		cacheQueryTokens: 0,
		cacheHitTokens: 0,
		draftTokens: 0,
		acceptedTokens: 0,
	};

	/** @throws RangeError for an option that makes no engine. */
	constructor(options: MockCoreOptions) {
		this.options = options;
		this.blockSize = atLeast(1, "blockSize", options.blockSize ?? 64);
		this.totalBlocks = atLeast(1, "numGpuBlocks", options.numGpuBlocks ?? 16_384);
		this.maxNumSeqs = atLeast(1, "maxNumSeqs", options.maxNumSeqs ?? 256);
		this.maxNumBatchedTokens = atLeast(1, "maxNumBatchedTokens", options.maxNumBatchedTokens ?? 8192);
		const inCache = this.totalBlocks * this.blockSize;
		this.maxModelLen = Math.min(atLeast(2, "maxModelLen", options.maxModelLen ?? inCache), inCache);
		ratio("speedupRatio", options.speedupRatio);
		ratio("decodeSpeedupRatio", options.decodeSpeedupRatio);
		const [first, end] = options.tokenIdRange ?? [0, options.vocabSize ?? 32_000];
		this.firstId = first;
		this.idSpan = atLeast(1, "the span of tokenIdRange", end - first);
		this.pool = new MockBlockPool(this.totalBlocks, (hash) => {
			if (this.collectKvEvents) this.evicted.push(hash);
		});
	}

	/** Queues all choices of a request, choice i under `handle + i`. A bad request becomes error outputs. */
	submit(handle: number, request: EngineRequest): void {
		const choices = choiceCount(request.sampling);
		const error =
			checkRequest(request, { maxModelLen: this.maxModelLen, vocabSize: this.options.vocabSize ?? 2 ** 32 }) ??
			(request.stop.maxTokens === undefined
				? { code: "invalid_argument" as const, message: MAX_TOKENS_REQUIRED }
				: undefined);
		if (error !== undefined) {
			for (let i = 0; i < choices; i++) this.outputs.addError(handle + i, error);
			return;
		}
		// Without a seed the request id is one: the same request gives the same tokens.
		const seed = request.sampling.seed ?? hashText(request.requestId);
		const seeded = { ...request, sampling: { ...request.sampling, seed } };
		for (let i = 0; i < choices; i++) {
			const sequence = new Sequence(handle + i, i, seeded, this.maxModelLen, this.blockSize);
			if (sequence.maxTokens <= 0) {
				this.outputs.addFinish(handle + i, "length");
				continue;
			}
			const one: MockSequence = {
				sequence,
				hashes: [],
				unnamed: 0,
				planned: 0,
				known: undefined,
			};
			this.sequences.set(handle + i, one);
			let place = this.waiting.length;
			while (place > 0 && this.waiting[place - 1]!.sequence.priority < sequence.priority) place--;
			this.waiting.splice(place, 0, one);
			this.tallyOf(one).add(sequence.length);
		}
	}

	/** Ends one sequence with "cancelled"; does nothing when it has ended. */
	abort(handle: number): void {
		const one = this.sequences.get(handle);
		if (one === undefined) return;
		if (one.sequence.status === "waiting") {
			this.waiting.splice(this.waiting.indexOf(one), 1);
			this.tallyOf(one).remove(one.sequence.length);
		} else this.running.splice(this.running.indexOf(one), 1);
		this.finish(one, "cancelled");
		this.outputs.addFinish(handle, "cancelled");
	}

	/** Ends everything without a word. */
	abortAll(): void {
		for (const one of this.sequences.values()) this.finish(one, "cancelled");
		this.running = [];
		this.waiting.length = 0;
		this.waitingPrompts.clear();
		this.waitingTexts.clear();
	}

	/** What the cache told since the last call, in order. */
	takeKvEvents(): KvCacheEvent[] {
		this.endRemoved();
		this.endStored();
		const events = this.kvEvents;
		this.kvEvents = [];
		return events;
	}

	/** What the step that just ended held, and what waits. */
	report(): StepReport {
		return {
			seconds: this.stepMs / 1000,
			prefill: { ...this.prefilling.summary(), cachedTokens: this.prefillCached },
			decode: this.decoding.summary(),
			waitingPrefill: this.waitingPrompts.summary(),
			waitingDecode: this.waitingTexts.summary(),
		};
	}

	/** Plans a step. @returns its length in milliseconds, or undefined when there is nothing to do. */
	beginStep(): number | undefined {
		const { preemptions } = this.counters;
		let budget = this.planRunning();
		// What had to give way in this step must not take its blocks back at once.
		if (this.counters.preemptions === preemptions) budget = this.admitWaiting(budget);
		if (budget === this.maxNumBatchedTokens) return undefined;
		return this.stepMilliseconds();
	}

	/** Ends the step that `beginStep` planned: whatever has been computed in full gets a token. */
	endStep(): void {
		let ended = false;
		for (const one of this.running) {
			if (one.planned === 0) continue;
			const { sequence } = one;
			sequence.numComputed += one.planned;
			one.planned = 0;
			this.nameFullBlocks(one);
			if (sequence.numComputed < sequence.length) continue;
			if (sequence.outputLength === 0) {
				const seconds = (performance.now() - sequence.admittedAt) / 1000;
				this.outputs.addStarted(sequence.handle, sequence.numCached, seconds);
			}
			const token = this.drawToken(sequence);
			const finish = sequence.append(token);
			this.counters.decodeTokens++;
			this.outputs.addToken(sequence.handle, token, finish);
			if (finish !== undefined) {
				this.finish(one, finish);
				ended = true;
			}
		}
		if (ended) this.running = this.running.filter((one) => one.sequence.status !== "finished");
		this.counters.steps++;
	}

	stats(): EngineStats {
		return {
			running: this.running.length,
			waiting: this.waiting.length,
			usedBlocks: this.pool.used,
			totalBlocks: this.totalBlocks,
			cachedBlocks: this.pool.numNamed,
			heldBlocks: 0,
			...this.counters,
		};
	}

	/** @returns the tokens of the step that are left. */
	private planRunning(): number {
		let budget = this.maxNumBatchedTokens;
		for (let i = 0; i < this.running.length && budget > 0; ) {
			const one = this.running[i]!;
			const { sequence } = one;
			const wanted = Math.min(sequence.length - sequence.numComputed, budget);
			const needed = this.blocksFor(sequence.numComputed + wanted) - one.hashes.length - one.unnamed;
			if (needed > 0 && !this.pool.allocate(needed)) {
				budget += this.preempt();
				// With the oldest gone the others have moved up by one; with the newest gone, this one may be it.
				if (this.options.preemptionMode === "fifo" && i > 0) i--;
				continue;
			}
			one.unnamed += Math.max(0, needed);
			one.planned = wanted;
			budget -= wanted;
			i++;
		}
		return budget;
	}

	/** @returns the tokens of the step that are left. */
	private admitWaiting(budget: number): number {
		let left = budget;
		while (this.waiting.length > 0 && this.running.length < this.maxNumSeqs && left > 0) {
			const one = this.waiting[0]!;
			const { sequence } = one;
			one.known ??= this.knownBlocks(one);
			const { known } = one;
			const { found, idle } = this.pool.findPrefix(known);
			const cached = found * this.blockSize;
			const rest = sequence.length - cached;
			const isWhole = rest <= left;
			// A prompt that no step holds runs by itself.
			const mustWait = !isWhole && this.options.enableChunkedPrefill === false && left < this.maxNumBatchedTokens;
			const needed = this.blocksFor(sequence.length) - found;
			if (mustWait || this.pool.used + idle + needed > this.totalBlocks) break;
			for (let i = 0; i < found; i++) this.pool.share(known[i]!);
			this.pool.allocate(needed);
			one.hashes = known.slice(0, found);
			one.unnamed = needed;
			one.planned = this.options.enableChunkedPrefill === false ? rest : Math.min(rest, left);
			left = Math.max(0, left - one.planned);
			sequence.numComputed = cached;
			if (sequence.outputLength === 0) {
				// One that had to give way before its first token has been admitted already.
				if (sequence.numCached < 0) sequence.admittedAt = performance.now();
				sequence.numCached = cached;
				this.counters.cacheQueryTokens += sequence.promptLength;
				this.counters.cacheHitTokens += cached;
			}
			sequence.status = "running";
			this.waiting.shift();
			this.tallyOf(one).remove(sequence.length);
			this.running.push(one);
		}
		return left;
	}

	private stepMilliseconds(): number {
		const { prefilling, decoding } = this;
		prefilling.clear();
		decoding.clear();
		this.prefillCached = 0;
		this.stepMs = 0;
		let pairs = 0;
		for (const { sequence, planned } of this.running) {
			if (planned === 0) continue;
			const { numComputed, length } = sequence;
			// A sequence that has given a token and lacks only that one in its cache decodes; the rest is prompt.
			if (planned === 1 && sequence.outputLength > 0 && numComputed === length - 1) {
				decoding.add(length);
			} else {
				prefilling.add(planned);
				this.prefillCached += numComputed;
				pairs += planned * (numComputed + planned / 2);
			}
		}
		const prefillTokens = prefilling.sum;
		this.counters.prefillTokens += prefillTokens;
		const speedup = this.options.speedupRatio ?? 1;
		if (speedup === 0) return 0;
		const decodeSpeedup = speedup * (this.options.decodeSpeedupRatio ?? 1);
		const milliseconds =
			prefillMilliseconds(prefillTokens, pairs) / speedup +
			(decodeSpeedup === 0 ? 0 : decodeMilliseconds(decoding.count, decoding.sum) / decodeSpeedup);
		this.stepMs = milliseconds;
		this.counters.stepSeconds += milliseconds / 1000;
		this.counters.modelSeconds += milliseconds / 1000;
		return milliseconds;
	}

	/** Puts one running sequence back to the front of the queue. @returns the tokens that it had been given. */
	private preempt(): number {
		const one = this.options.preemptionMode === "fifo" ? this.running.shift()! : this.running.pop()!;
		const { planned, sequence } = one;
		this.pool.release(one.hashes, one.unnamed);
		one.hashes = [];
		one.unnamed = 0;
		one.planned = 0;
		one.known = undefined;
		sequence.numComputed = 0;
		sequence.status = "waiting";
		this.waiting.unshift(one);
		this.tallyOf(one).add(sequence.length);
		this.counters.preemptions++;
		return planned;
	}

	/** Hashes of the full blocks that could be found in the cache: never the last token, which must be computed. */
	private knownBlocks({ sequence }: MockSequence): BlockHash[] {
		if (this.options.enablePrefixCaching === false) return [];
		const count = Math.floor((sequence.length - 1) / this.blockSize);
		return Array.from({ length: count }, (_, i) => sequence.hashes.sequenceHash(i));
	}

	private nameFullBlocks(one: MockSequence): void {
		if (this.options.enablePrefixCaching === false) return;
		const { sequence, hashes } = one;
		const full = Math.floor(sequence.numComputed / this.blockSize);
		while (hashes.length < full) {
			const index = hashes.length;
			const hash = sequence.hashes.sequenceHash(index);
			if (this.pool.name(hash) && this.collectKvEvents) this.noteStored(sequence.hashes, index);
			one.unnamed--;
			hashes.push(hash);
		}
		this.endStored();
	}

	/** Blocks that follow each other are told as one event. */
	private noteStored(hashes: PromptHashes, index: number): void {
		this.endRemoved();
		const { storing } = this;
		const parentHash = index === 0 ? undefined : hashes.sequenceHash(index - 1);
		const block = { blockHash: hashes.sequenceHash(index), tokensHash: hashes.tokensHash(index) };
		const tokenIds = hashes.tokens(index, index + 1);
		if (storing !== undefined && storing.blocks.at(-1)?.blockHash === parentHash) {
			storing.blocks.push(block);
			storing.tokenIds.push(...tokenIds);
			return;
		}
		this.endStored();
		this.storing = { parentHash, blocks: [block], tokenIds, cacheSalt: hashes.cacheSalt || undefined };
	}

	private endStored(): void {
		if (this.storing === undefined) return;
		this.kvEvents.push({ type: "stored", ...this.storing, blockSize: this.blockSize } satisfies BlocksStored);
		this.storing = undefined;
	}

	/** Evictions of a step are told as one event, before what took the place. */
	private endRemoved(): void {
		if (this.evicted.length === 0) return;
		this.endStored();
		this.kvEvents.push({ type: "removed", blockHashes: this.evicted });
		this.evicted = [];
	}

	private tallyOf({ sequence }: MockSequence): LengthTally {
		return sequence.outputLength === 0 ? this.waitingPrompts : this.waitingTexts;
	}

	private drawToken(sequence: Sequence): number {
		let token = this.firstId + (sequence.random.nextUint32() % this.idSpan);
		// Only the length ends a simulated text. The bound is for a range that has nothing but end ids.
		for (let tries = 0; tries < 32 && sequence.isEndId(token); tries++) {
			token = this.firstId + (sequence.random.nextUint32() % this.idSpan);
		}
		return token;
	}

	/** The caller takes it off its list. */
	private finish(one: MockSequence, reason: FinishReason): void {
		const { sequence } = one;
		this.pool.release(one.hashes, one.unnamed);
		one.hashes = [];
		one.unnamed = 0;
		one.planned = 0;
		sequence.status = "finished";
		sequence.finishReason = reason;
		this.sequences.delete(sequence.handle);
	}

	private blocksFor(tokens: number): number {
		return Math.ceil(tokens / this.blockSize);
	}
}

function atLeast(least: number, name: string, value: number): number {
	if (!Number.isInteger(value) || value < least) {
		throw new RangeError(`${name} must be a whole number of at least ${least}, got ${value}`);
	}
	return value;
}

function ratio(name: string, value: number | undefined): void {
	if (value !== undefined && !(value >= 0))
		throw new RangeError(`${name} must be a number of at least 0, got ${value}`);
}
