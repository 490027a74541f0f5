// SPDX-License-Identifier: Apache-2.0
// Everything that one step says about all sequences, as flat integers: one message per step between the threads,
// whatever the batch size.

import type { KvCacheEvent } from "@dynamo-ts/protocols/internal";
import type { EngineError, FinishReason, HeldKv, PromptLogprob, StepReport } from "./engine.js";
import type { TokenLogprobs } from "./sampler.js";
import type { FetchNotice } from "./thread-messages.js";

/** Integers per record: handle, token id (-1 = none), index of the finish reason + 1 (0 = goes on). */
export const RECORD_SIZE = 3;
/** Finish reasons by their number in a record. */
export const FINISH_REASONS: readonly FinishReason[] = ["stop", "eos", "length", "cancelled", "error"];

const CODES = Object.fromEntries(FINISH_REASONS.map((reason, i) => [reason, i + 1])) as Record<FinishReason, number>;

/** What crosses the thread boundary after a step. Absent lists are empty. */
export interface StepMessage {
	readonly type: "step";
	/** `RECORD_SIZE` integers per token or end. */
	readonly records: number[];
	/** Pairs of handle and cached prompt tokens, for sequences whose first token is in `records`. */
	readonly started?: number[];
	/** Seconds from admission to the first token, one for each pair of `started`. */
	readonly prefillSeconds?: number[];
	/** By handle; the record says "error". */
	readonly errors?: [number, EngineError][];
	/** By handle, in the order of their records. */
	readonly logprobs?: [number, TokenLogprobs][];
	/** By handle; of sequences whose first token is in `records`. */
	readonly promptLogprobs?: [number, readonly (PromptLogprob | null)[]][];
	/** What became findable in the cache, and what no longer is, in order. */
	readonly kvEvents?: KvCacheEvent[];
	/** By handle; of sequences whose end is in `records`. */
	readonly held?: [number, HeldKv][];
	/** Ids of what was kept and had to be given up. */
	readonly givenUp?: number[];
	readonly fetches?: FetchNotice[];
	/** Where reports of steps were asked for. */
	readonly report?: StepReport;
}

/** Gathers a step's outputs; `take` empties it. */
export class StepOutputs {
	private records: number[] = [];
	private started: number[] = [];
	private prefillSeconds: number[] = [];
	private errors: [number, EngineError][] = [];
	private logprobs: [number, TokenLogprobs][] = [];
	private promptLogprobs: [number, readonly (PromptLogprob | null)[]][] = [];
	private kvEvents: KvCacheEvent[] = [];
	private held: [number, HeldKv][] = [];
	private givenUp: number[] = [];
	private fetches: FetchNotice[] = [];
	private report: StepReport | undefined;

	setReport(report: StepReport): void {
		this.report = report;
	}

	addPromptLogprobs(handle: number, entries: readonly (PromptLogprob | null)[]): void {
		this.promptLogprobs.push([handle, entries]);
	}

	addHeld(handle: number, held: HeldKv): void {
		this.held.push([handle, held]);
	}

	addGivenUp(id: number): void {
		this.givenUp.push(id);
	}

	addFetch(notice: FetchNotice): void {
		this.fetches.push(notice);
	}

	addKvEvent(event: KvCacheEvent): void {
		this.kvEvents.push(event);
	}

	addStarted(handle: number, cachedTokens: number, prefillSeconds: number): void {
		this.started.push(handle, cachedTokens);
		this.prefillSeconds.push(prefillSeconds);
	}

	addToken(handle: number, token: number, finish: FinishReason | undefined): void {
		this.records.push(handle, token, finish === undefined ? 0 : CODES[finish]);
	}

	addLogprobs(handle: number, logprobs: TokenLogprobs): void {
		this.logprobs.push([handle, logprobs]);
	}

	/** An end without a token. */
	addFinish(handle: number, finish: FinishReason): void {
		this.records.push(handle, -1, CODES[finish]);
	}

	addError(handle: number, error: EngineError): void {
		this.errors.push([handle, error]);
		this.records.push(handle, -1, CODES.error);
	}

	/** The message since the last call, or undefined when nothing happened. */
	take(): StepMessage | undefined {
		const { records, started, prefillSeconds, errors, logprobs, promptLogprobs, kvEvents, report } = this;
		const { held, givenUp, fetches } = this;
		const quiet = records.length === 0 && kvEvents.length === 0 && report === undefined;
		if (quiet && givenUp.length === 0 && fetches.length === 0) return undefined;
		this.records = [];
		if (started.length > 0) {
			this.started = [];
			this.prefillSeconds = [];
		}
		if (errors.length > 0) this.errors = [];
		if (logprobs.length > 0) this.logprobs = [];
		if (promptLogprobs.length > 0) this.promptLogprobs = [];
		if (kvEvents.length > 0) this.kvEvents = [];
		if (held.length > 0) this.held = [];
		if (givenUp.length > 0) this.givenUp = [];
		if (fetches.length > 0) this.fetches = [];
		this.report = undefined;
		return {
			type: "step",
			records,
			...(started.length > 0 && { started, prefillSeconds }),
			...(errors.length > 0 && { errors }),
			...(logprobs.length > 0 && { logprobs }),
			...(promptLogprobs.length > 0 && { promptLogprobs }),
			...(kvEvents.length > 0 && { kvEvents }),
			...(held.length > 0 && { held }),
			...(givenUp.length > 0 && { givenUp }),
			...(fetches.length > 0 && { fetches }),
			...(report !== undefined && { report }),
		};
	}
}
