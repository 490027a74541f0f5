// SPDX-License-Identifier: Apache-2.0
// The simulated engine: no model, random tokens, and the timing, batching and caching of a real one. It runs in the
// caller's thread, with one timer per step whatever the number of sequences.

import type { KvCacheEvent } from "@dynamo-ts/protocols/internal";
import type { Engine, EngineInfo, EngineOutput, EngineRequest, EngineStats, StepReport } from "../engine.js";
import { RequestTable, refusal } from "../request-table.js";
import { MockCore, type MockCoreOptions } from "./mock-core.js";

export interface MockEngineOptions extends MockCoreOptions {
	/** Time that `start` takes, in seconds; default 0. */
	readonly startupTime?: number | undefined;
	/** Most choices in the engine, waiting ones included; more are answered "overloaded". Default 65536. */
	readonly maxPending?: number | undefined;
	/** Reported as it is. */
	readonly modelName?: string | undefined;
}

/** Steps that are late may be made up for by so much, in ms; more is forgotten. */
const MAX_CATCH_UP_MS = 50;

/**
 * An engine that only pretends. It ends a text by length alone, so a request without `maxTokens` is an
 * "invalid_argument"; sampling options other than n and seed have no effect, and there are no log-probabilities.
 * @throws RangeError for an option that makes no engine.
 */
export function createMockEngine(options: MockEngineOptions = {}): Engine {
	return new MockEngine(options);
}

class MockEngine implements Engine {
	private readonly options: MockEngineOptions;
	private readonly core: MockCore;
	private readonly table = new RequestTable((requestId) => this.abort(requestId));
	private state: "new" | "loading" | "ready" | "closed" = "new";
	private startup: { timer: NodeJS.Timeout; reject(error: Error): void } | undefined;
	private inStep = false;
	/** No step since the last one ended: nothing to catch up with. */
	private idle = true;
	/** When the step in progress ends, on the clock of performance.now(). */
	private dueAt = 0;
	private timer: NodeJS.Timeout | undefined;
	private immediate: NodeJS.Immediate | undefined;
	private flushing: NodeJS.Immediate | undefined;
	private readonly kvListeners: ((events: readonly KvCacheEvent[]) => void)[] = [];
	private readonly stepListeners: ((report: StepReport) => void)[] = [];

	constructor(options: MockEngineOptions) {
		this.options = options;
		this.core = new MockCore(options);
	}

	start(): Promise<EngineInfo> {
		if (this.state !== "new") return Promise.reject(new Error(`the engine cannot be started: it is ${this.state}`));
		this.state = "loading";
		return new Promise((resolve, reject) => {
			const ready = (): void => {
				this.startup = undefined;
				this.state = "ready";
				resolve(this.info());
				this.runStep();
			};
			const milliseconds = (this.options.startupTime ?? 0) * 1000;
			this.startup = { timer: setTimeout(ready, milliseconds), reject };
		});
	}

	submit(request: EngineRequest, onOutput: (output: EngineOutput) => void): void {
		if (this.state === "new" || this.state === "closed") throw new Error(`the engine is ${this.state}`);
		const limit = this.options.maxPending ?? 65_536;
		if (this.table.has(request.requestId)) {
			const message = `request id ${request.requestId} is in use`;
			setImmediate(() => onOutput(refusal(request, { code: "invalid_argument", message })));
			return;
		}
		if (this.table.size >= limit) {
			const message = `the engine holds ${limit} sequences already`;
			setImmediate(() => onOutput(refusal(request, { code: "overloaded", message })));
			return;
		}
		const { first } = this.table.add(request, onOutput);
		this.core.submit(first, request);
		this.flushSoon();
	}

	abort(requestId: string): void {
		const range = this.table.markAborted(requestId);
		if (range === undefined) return;
		for (let i = 0; i < range.count; i++) this.core.abort(range.first + i);
		this.flushSoon();
	}

	stats(): EngineStats {
		return this.core.stats();
	}

	onKvEvents(callback: (events: readonly KvCacheEvent[]) => void): void {
		this.core.collectKvEvents = true;
		this.kvListeners.push(callback);
	}

	onStep(callback: (report: StepReport) => void): void {
		this.stepListeners.push(callback);
	}

	onFailure(_callback: (error: Error) => void): void {
		// Nothing in here can die by itself.
	}

	close(): Promise<void> {
		if (this.state !== "closed") {
			this.state = "closed";
			if (this.startup !== undefined) {
				clearTimeout(this.startup.timer);
				this.startup.reject(new Error("the engine was closed while it was loading"));
			}
			clearTimeout(this.timer);
			if (this.immediate !== undefined) clearImmediate(this.immediate);
			if (this.flushing !== undefined) clearImmediate(this.flushing);
			this.table.endAll(undefined);
			this.core.abortAll();
		}
		return Promise.resolve();
	}

	private info(): EngineInfo {
		const { core, options } = this;
		return {
			modelName: options.modelName,
			maxModelLen: core.maxModelLen,
			blockSize: core.blockSize,
			totalBlocks: core.totalBlocks,
			maxNumSeqs: core.maxNumSeqs,
			maxNumBatchedTokens: core.maxNumBatchedTokens,
			vocabSize: options.vocabSize ?? 32_000,
			device: "mock",
			quantization: "none",
			kvBytesPerToken: 0,
			kvCacheDtype: "none",
			eosTokenIds: [],
			loadSeconds: options.startupTime ?? 0,
		};
	}

	/** Arrivals of one turn start together; what was refused or aborted is answered in the next one. */
	private flushSoon(): void {
		this.flushing ??= setImmediate(() => {
			this.flushing = undefined;
			this.flush();
			this.runStep();
		});
	}

	private flush(): void {
		if (this.kvListeners.length > 0) {
			const events = this.core.takeKvEvents();
			if (events.length > 0) for (const listener of this.kvListeners) listener(events);
		}
		const message = this.core.outputs.take();
		if (message !== undefined) this.table.dispatch(message);
	}

	private runStep(): void {
		if (this.inStep || this.state !== "ready") return;
		const milliseconds = this.core.beginStep();
		if (milliseconds === undefined) return;
		this.inStep = true;
		const now = performance.now();
		this.dueAt = (this.idle ? now : Math.max(this.dueAt, now - MAX_CATCH_UP_MS)) + milliseconds;
		this.idle = false;
		const wait = this.dueAt - now;
		// Timers count whole milliseconds; what they are late by, the next steps are shorter by.
		if (wait < 1) this.immediate = setImmediate(this.endStep);
		else this.timer = setTimeout(this.endStep, wait);
	}

	private readonly endStep = (): void => {
		this.inStep = false;
		this.core.endStep();
		if (this.stepListeners.length > 0) {
			const report = this.core.report();
			for (const listener of this.stepListeners) listener(report);
		}
		this.flush();
		this.runStep();
		this.idle = !this.inStep;
	};
}
