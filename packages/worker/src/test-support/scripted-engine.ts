// SPDX-License-Identifier: Apache-2.0
import type { Engine, EngineInfo, EngineOutput, EngineRequest, EngineStats } from "@dynamo-ts/engine";
import type { KvCacheEvent } from "@dynamo-ts/protocols/internal";

/** What the scripted engine says it is. */
export const ENGINE_INFO: EngineInfo = {
	modelName: undefined,
	maxModelLen: 100,
	blockSize: 16,
	totalBlocks: 56,
	maxNumSeqs: 8,
	maxNumBatchedTokens: 72,
	vocabSize: 1000,
	device: "cpu",
	quantization: "none",
	kvBytesPerToken: 4,
	kvCacheDtype: "fp32",
	eosTokenIds: [2],
	loadSeconds: 0.5,
};

/** An engine whose every output a test writes by hand. */
export class ScriptedEngine implements Engine {
	readonly requests: EngineRequest[] = [];
	readonly aborted: string[] = [];
	closed = false;
	started = false;
	/** Thrown by `start` when set. */
	startError: Error | undefined;
	readonly #outputs = new Map<string, (output: EngineOutput) => void>();
	#onFailure: (error: Error) => void = () => {};
	#onKvEvents: (events: readonly KvCacheEvent[]) => void = () => {};

	async start(): Promise<EngineInfo> {
		this.started = true;
		if (this.startError !== undefined) throw this.startError;
		return ENGINE_INFO;
	}

	submit(request: EngineRequest, onOutput: (output: EngineOutput) => void): void {
		if (this.closed) throw new Error("the engine is closed");
		this.requests.push(request);
		this.#outputs.set(request.requestId, onOutput);
	}

	abort(requestId: string): void {
		this.aborted.push(requestId);
	}

	stats(): EngineStats {
		return {
			running: 2,
			waiting: 1,
			usedBlocks: 14,
			heldBlocks: 3,
			totalBlocks: 56,
			cachedBlocks: 20,
			prefillTokens: 100,
			decodeTokens: 50,
			steps: 60,
			stepSeconds: 1.5,
			modelSeconds: 1.25,
			preemptions: 3,
			cacheQueryTokens: 80,
			cacheHitTokens: 20,
			draftTokens: 0,
			acceptedTokens: 0,
		};
	}

	onFailure(callback: (error: Error) => void): void {
		this.#onFailure = callback;
	}

	onKvEvents(callback: (events: readonly KvCacheEvent[]) => void): void {
		this.#onKvEvents = callback;
	}

	/** Tells of changes of a cache. */
	emitKvEvents(events: readonly KvCacheEvent[]): void {
		this.#onKvEvents(events);
	}

	async close(): Promise<void> {
		this.closed = true;
		for (const requestId of [...this.#outputs.keys()]) this.emit({ finishReason: "cancelled" }, requestId);
	}

	/** Sends an output to the last request, or to the one named. */
	emit(output: Partial<EngineOutput>, requestId = this.requests.at(-1)?.requestId ?? ""): void {
		this.#outputs.get(requestId)?.({
			index: 0,
			tokenIds: [],
			finishReason: undefined,
			stopReason: undefined,
			error: undefined,
			logProbs: undefined,
			topLogprobs: undefined,
			promptTokens: undefined,
			completionTokens: undefined,
			cachedTokens: undefined,
			...output,
		});
	}

	fail(error: Error): void {
		this.#onFailure(error);
	}
}
