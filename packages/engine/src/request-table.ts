// SPDX-License-Identifier: Apache-2.0
// The requests of an engine whose outputs come as step messages: finds the callback of each record, counts tokens,
// and makes sure that every choice ends exactly once.

import type { EngineError, EngineOutput, EngineRequest, HeldKv, KvFetch } from "./engine.js";
import type { TokenLogprobs } from "./sampler.js";
import { choiceCount } from "./sampling-params.js";
import { FINISH_REASONS, RECORD_SIZE, type StepMessage } from "./step-outputs.js";

interface PendingRequest {
	readonly requestId: string;
	readonly firstHandle: number;
	readonly choices: number;
	readonly firstIndex: number;
	readonly promptTokens: number;
	readonly onOutput: (output: EngineOutput) => void;
	readonly fetchKv: ((fetch: KvFetch) => void) | undefined;
	/** Choices without a finish reason. */
	open: number;
	aborted: boolean;
}

interface PendingChoice {
	readonly request: PendingRequest;
	readonly index: number;
	completionTokens: number;
	cachedTokens: number;
	prefillSeconds: number | undefined;
}

/** The handles of one request's choices: first .. first + count - 1. */
export interface HandleRange {
	readonly first: number;
	readonly count: number;
}

export class RequestTable {
	private readonly requests = new Map<string, PendingRequest>();
	private readonly choices = new Map<number, PendingChoice>();
	private readonly abortThrower: (requestId: string) => void;
	private readonly releaseHeld: (id: number) => void;
	private nextHandle = 1;

	/**
	 * @param abortThrower called with the request whose callback threw; it should abort it.
	 * @param releaseHeld called with what was kept for a request that nobody waits for any more.
	 */
	constructor(abortThrower: (requestId: string) => void, releaseHeld: (id: number) => void = () => {}) {
		this.abortThrower = abortThrower;
		this.releaseHeld = releaseHeld;
	}

	/** Choices that have not ended. */
	get size(): number {
		return this.choices.size;
	}

	has(requestId: string): boolean {
		return this.requests.has(requestId);
	}

	/** Enters a request whose id is not in the table. */
	add(request: EngineRequest, onOutput: (output: EngineOutput) => void): HandleRange {
		const count = choiceCount(request.sampling);
		const first = this.nextHandle;
		this.nextHandle += count;
		const pending: PendingRequest = {
			requestId: request.requestId,
			firstHandle: first,
			choices: count,
			firstIndex: request.index ?? 0,
			promptTokens: request.tokenIds.length,
			onOutput,
			fetchKv: request.fetchKv,
			open: count,
			aborted: false,
		};
		this.requests.set(request.requestId, pending);
		for (let i = 0; i < count; i++) {
			this.choices.set(first + i, {
				request: pending,
				index: pending.firstIndex + i,
				completionTokens: 0,
				cachedTokens: 0,
				prefillSeconds: undefined,
			});
		}
		return { first, count };
	}

	/** Holds back further tokens of a request. @returns what to abort; undefined for unknown ids and the second time. */
	markAborted(requestId: string): HandleRange | undefined {
		const request = this.requests.get(requestId);
		if (request === undefined || request.aborted) return undefined;
		request.aborted = true;
		return { first: request.firstHandle, count: request.choices };
	}

	/** Who fills the blocks of a choice; undefined when nobody waits for it any more. */
	fetcher(handle: number): ((fetch: KvFetch) => void) | undefined {
		const request = this.choices.get(handle)?.request;
		return request === undefined || request.aborted ? undefined : request.fetchKv;
	}

	/** Calls back for every choice of a step, in this turn: tokens of one choice that follow each other come together. */
	dispatch(message: StepMessage): void {
		if (message.held !== undefined) this.dropUnwanted(message.held);
		const { records, started, errors, logprobs } = message;
		if (started !== undefined) {
			for (let i = 0; i < started.length; i += 2) {
				const choice = this.choices.get(started[i]!);
				if (choice === undefined) continue;
				choice.cachedTokens = started[i + 1]!;
				choice.prefillSeconds = message.prefillSeconds?.[i >> 1];
			}
		}
		let nextLogprobs = 0;
		for (let i = 0; i < records.length; ) {
			const handle = records[i]!;
			const tokenIds: number[] = [];
			let entries: TokenLogprobs[] | undefined;
			let code = 0;
			for (; i < records.length && records[i] === handle && code === 0; i += RECORD_SIZE) {
				const token = records[i + 1]!;
				code = records[i + 2]!;
				if (token < 0) continue;
				tokenIds.push(token);
				if (logprobs?.[nextLogprobs]?.[0] === handle) {
					entries ??= [];
					entries.push(logprobs[nextLogprobs++]![1]);
				}
			}
			const choice = this.choices.get(handle);
			if (choice === undefined) continue;
			const isLast = code !== 0;
			if (choice.request.aborted) {
				if (isLast) this.end(handle, choice, "cancelled", undefined);
				continue;
			}
			const finishReason = isLast ? FINISH_REASONS[code - 1] : undefined;
			const isFirst = choice.completionTokens === 0;
			choice.completionTokens += tokenIds.length;
			if (tokenIds.length === 0) {
				const error = finishReason === "error" ? errors?.find(([of]) => of === handle)?.[1] : undefined;
				if (finishReason !== undefined) this.end(handle, choice, finishReason, error);
				continue;
			}
			const prompt = isFirst ? message.promptLogprobs?.find(([of]) => of === handle)?.[1] : undefined;
			const error = finishReason === "error" ? errors?.find(([of]) => of === handle)?.[1] : undefined;
			const withUsage = isLast || isFirst;
			const held = isLast ? message.held?.find(([of]) => of === handle)?.[1] : undefined;
			if (isLast) this.remove(handle, choice);
			this.call(choice.request, {
				index: choice.index,
				tokenIds,
				finishReason,
				stopReason: finishReason === "stop" ? tokenIds.at(-1) : undefined,
				error,
				logProbs: entries?.map((entry) => entry.logprob),
				topLogprobs: entries?.map((entry) => entry.top),
				...(prompt !== undefined && { promptLogprobs: prompt }),
				promptTokens: withUsage ? choice.request.promptTokens : undefined,
				completionTokens: withUsage ? choice.completionTokens : undefined,
				cachedTokens: withUsage ? choice.cachedTokens : undefined,
				...(isFirst && choice.prefillSeconds !== undefined && { prefillSeconds: choice.prefillSeconds }),
				...(held !== undefined && { held }),
			});
		}
	}

	/** Who left meanwhile cannot say where the blocks are that were kept. */
	private dropUnwanted(held: readonly [number, HeldKv][]): void {
		for (const [handle, { id }] of held) {
			if (this.choices.get(handle)?.request.aborted !== false) this.releaseHeld(id);
		}
	}

	/** Ends one request with an error. */
	endRequest(requestId: string, error: EngineError): void {
		const request = this.requests.get(requestId);
		if (request === undefined) return;
		for (let handle = request.firstHandle; handle < request.firstHandle + request.choices; handle++) {
			const choice = this.choices.get(handle);
			if (choice !== undefined) this.end(handle, choice, "error", error);
		}
	}

	/** Ends everything: with an error, or with "cancelled" when there is none. */
	endAll(error: EngineError | undefined): void {
		for (const [handle, choice] of [...this.choices]) {
			// A callback may have ended it meanwhile.
			if (!this.choices.has(handle)) continue;
			const cancelled = error === undefined || choice.request.aborted;
			this.end(handle, choice, cancelled ? "cancelled" : "error", cancelled ? undefined : error);
		}
	}

	private end(
		handle: number,
		choice: PendingChoice,
		finishReason: NonNullable<EngineOutput["finishReason"]>,
		error: EngineError | undefined,
	): void {
		this.remove(handle, choice);
		this.call(choice.request, {
			index: choice.index,
			tokenIds: [],
			finishReason,
			stopReason: undefined,
			error,
			logProbs: undefined,
			topLogprobs: undefined,
			promptTokens: choice.request.promptTokens,
			completionTokens: choice.completionTokens,
			cachedTokens: choice.cachedTokens,
		});
	}

	private remove(handle: number, choice: PendingChoice): void {
		this.choices.delete(handle);
		if (--choice.request.open === 0) this.requests.delete(choice.request.requestId);
	}

	private call(request: PendingRequest, output: EngineOutput): void {
		try {
			request.onOutput(output);
		} catch (cause) {
			// One request's bug must not stop the others of this step.
			process.emitWarning(cause instanceof Error ? cause : new Error(String(cause)));
			if (request.open > 0) this.abortThrower(request.requestId);
		}
	}
}

/** A last output for a request that never entered an engine. */
export function refusal(request: EngineRequest, error: EngineError): EngineOutput {
	return {
		index: request.index ?? 0,
		tokenIds: [],
		finishReason: "error",
		stopReason: undefined,
		error,
		logProbs: undefined,
		topLogprobs: undefined,
		promptTokens: request.tokenIds.length,
		completionTokens: 0,
		cachedTokens: 0,
	};
}
