// SPDX-License-Identifier: Apache-2.0
// The real engine as its users see it: a worker thread with the model, and callbacks in the caller's thread.

import { Worker } from "node:worker_threads";
import type { KvCacheEvent } from "@dynamo-ts/protocols/internal";
import type {
	Engine,
	EngineError,
	EngineInfo,
	EngineOutput,
	EngineRequest,
	EngineStats,
	KvPort,
	StepReport,
} from "./engine.js";
import { createHeldStates } from "./kv/held-blocks.js";
import { ThreadKvPort } from "./kv/kv-port.js";
import { RequestTable, refusal } from "./request-table.js";
import { createStatsBuffer, readStats } from "./stats-buffer.js";
import type { EngineThreadData, EngineThreadModel, FromThread, ToThread } from "./thread-messages.js";

export interface EngineThreadOptions extends EngineThreadModel {
	/** Most choices in the engine, waiting ones included; more are answered "overloaded". Default 16384. */
	readonly maxPending?: number | undefined;
	/** Time that `close` gives the thread to end by itself before it is terminated, in seconds; default 10. */
	readonly closeTimeout?: number | undefined;
	/** Called while the model loads; `fraction` runs from 0 to 1 within a stage. */
	onProgress?(stage: string, fraction: number): void;
}

/** An engine with a model of its own, in its own thread. Nothing is loaded before `start`. */
export function createEngineThread(options: EngineThreadOptions): Engine {
	return new EngineThread(options);
}

type State = "new" | "loading" | "ready" | "failed" | "closed";

class EngineThread implements Engine {
	private readonly options: EngineThreadOptions;
	private readonly statsBuffer = createStatsBuffer();
	private readonly heldStates = createHeldStates();
	private readonly statsView = new Float64Array(this.statsBuffer);
	private readonly table = new RequestTable(
		(requestId) => this.abort(requestId),
		(id) => this.port?.release(id),
	);
	private readonly failureCallbacks: ((error: Error) => void)[] = [];
	private readonly kvCallbacks: ((events: readonly KvCacheEvent[]) => void)[] = [];
	private readonly stepCallbacks: ((report: StepReport) => void)[] = [];
	private port: ThreadKvPort | undefined;
	private state: State = "new";
	private worker: Worker | undefined;
	private exited: Promise<void> = Promise.resolve();
	private settleStart: { resolve(info: EngineInfo): void; reject(error: Error): void } | undefined;

	constructor(options: EngineThreadOptions) {
		this.options = options;
	}

	start(): Promise<EngineInfo> {
		if (this.state !== "new") return Promise.reject(new Error(`the engine cannot be started: it is ${this.state}`));
		this.state = "loading";
		const { onProgress: _, maxPending: __, closeTimeout: ___, ...model } = this.options;
		const worker = new Worker(entryUrl(), {
			workerData: {
				model: { ...model, kvEvents: this.kvCallbacks.length > 0 },
				stats: this.statsBuffer,
				held: this.heldStates.buffer as SharedArrayBuffer,
			} satisfies EngineThreadData,
			name: "engine",
			// The thread runs built files, whatever loaders and conditions this process was started with.
			execArgv: [],
		});
		this.worker = worker;
		this.exited = new Promise((resolve) => worker.once("exit", () => resolve()));
		worker.on("message", (message: FromThread) => this.receive(message));
		worker.on("error", (error: Error) => this.fail(error));
		worker.on("exit", (code) => this.fail(new Error(`the engine thread ended with code ${code}`)));
		return new Promise((resolve, reject) => {
			this.settleStart = { resolve, reject };
		});
	}

	submit(request: EngineRequest, onOutput: (output: EngineOutput) => void): void {
		if (this.state === "new" || this.state === "closed") throw new Error(`the engine is ${this.state}`);
		const error = this.refuse(request);
		if (error !== undefined) {
			setImmediate(() => onOutput(refusal(request, error)));
			return;
		}
		// A view into a larger buffer would take all of it to the thread.
		const { tokenIds } = request;
		const { fetchKv, ...plain } = request;
		const own = ArrayBuffer.isView(tokenIds) ? { ...plain, tokenIds: tokenIds.slice() } : plain;
		const { first } = this.table.add(request, onOutput);
		try {
			this.post({ type: "submit", handle: first, request: own, fetch: fetchKv !== undefined });
		} catch (cause) {
			// Not plain data: the thread never sees it.
			const message = `the request cannot be sent to the engine: ${cause instanceof Error ? cause.message : cause}`;
			setImmediate(() => this.table.endRequest(request.requestId, { code: "invalid_argument", message }));
		}
	}

	abort(requestId: string): void {
		const range = this.table.markAborted(requestId);
		if (range === undefined) return;
		this.post({ type: "abort", handle: range.first, count: range.count });
		this.port?.cancelFetch(range.first);
	}

	stats(): EngineStats {
		const stats = readStats(this.statsView);
		// What a dead thread wrote last is no longer so.
		if (this.state !== "ready") Object.assign(stats, { running: 0, waiting: 0, usedBlocks: 0, heldBlocks: 0 });
		return stats;
	}

	get kv(): KvPort | undefined {
		return this.port;
	}

	onFailure(callback: (error: Error) => void): void {
		this.failureCallbacks.push(callback);
	}

	onKvEvents(callback: (events: readonly KvCacheEvent[]) => void): void {
		if (this.state !== "new") throw new Error("cache events must be asked for before the engine starts");
		this.kvCallbacks.push(callback);
	}

	onStep(callback: (report: StepReport) => void): void {
		this.stepCallbacks.push(callback);
		if (this.state === "ready") this.post({ type: "reportSteps" });
	}

	async close(): Promise<void> {
		if (this.state !== "closed") {
			const wasLoading = this.state === "loading";
			this.state = "closed";
			this.settleStart?.reject(new Error("the engine was closed while it was loading"));
			this.settleStart = undefined;
			this.table.endAll(undefined);
			this.port?.end();
			// A thread that loads reads no messages.
			if (wasLoading) void this.worker?.terminate();
			else this.post({ type: "close" });
		}
		const deadline = setTimeout(() => void this.worker?.terminate(), (this.options.closeTimeout ?? 10) * 1000);
		await this.exited;
		clearTimeout(deadline);
	}

	private post(message: ToThread, transfer: ArrayBuffer[] = []): void {
		this.worker?.postMessage(message, transfer);
	}

	private refuse(request: EngineRequest): EngineError | undefined {
		if (this.state === "failed") return { code: "engine_failed", message: "the engine has stopped" };
		if (this.table.has(request.requestId)) {
			return { code: "invalid_argument", message: `request id ${request.requestId} is in use` };
		}
		const limit = this.options.maxPending ?? 16_384;
		if (this.table.size >= limit) {
			return { code: "overloaded", message: `the engine holds ${limit} sequences already` };
		}
		return undefined;
	}

	private receive(message: FromThread): void {
		switch (message.type) {
			case "step":
				// First what the cache holds: who hears of an answer may look for its blocks.
				if (message.kvEvents !== undefined) for (const tell of this.kvCallbacks) tell(message.kvEvents);
				if (message.givenUp !== undefined) this.port?.receiveGivenUp(message.givenUp);
				this.table.dispatch(message);
				if (message.fetches !== undefined) {
					for (const notice of message.fetches) this.port?.receiveFetch(notice, this.table.fetcher(notice.handle));
				}
				if (message.report !== undefined) for (const tell of this.stepCallbacks) tell(message.report);
				break;
			case "progress":
				this.options.onProgress?.(message.stage, message.fraction);
				break;
			case "ready":
				if (this.state !== "loading") return;
				this.state = "ready";
				this.port = new ThreadKvPort({
					layout: message.layout,
					shared: message.sharedBlocks,
					states: this.heldStates,
					post: (toThread, transfer) => this.post(toThread, transfer),
				});
				if (this.stepCallbacks.length > 0) this.post({ type: "reportSteps" });
				this.settleStart?.resolve(message.info);
				this.settleStart = undefined;
				break;
			case "blocks":
				this.port?.receiveRead(message.read, message.data);
				break;
			case "failed":
				this.fail(new Error(message.message));
		}
	}

	private fail(error: Error): void {
		if (this.state === "failed" || this.state === "closed") return;
		const wasLoading = this.state === "loading";
		this.state = "failed";
		this.settleStart?.reject(error);
		this.settleStart = undefined;
		this.table.endAll({ code: "engine_failed", message: "the engine has stopped" });
		this.port?.end();
		// While loading, the rejected start is the report.
		if (!wasLoading) for (const callback of this.failureCallbacks) callback(error);
	}
}

/** The built file, also when this one runs from source. */
function entryUrl(): URL {
	return new URL(
		import.meta.url.endsWith(".ts") ? "../dist/engine-thread-entry.js" : "./engine-thread-entry.js",
		import.meta.url,
	);
}
