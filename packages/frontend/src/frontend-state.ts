// SPDX-License-Identifier: Apache-2.0
import type { IncomingMessage, ServerResponse } from "node:http";
import { type RouteLogs, routeLogs } from "@dynamo-ts/router/internal";
import type { DistributedRuntime, Logger } from "@dynamo-ts/runtime";
import { sendFailure, sendJson } from "./answers.js";
import type { FrontendConfig } from "./config.js";
import type { FrontendMetrics } from "./frontend-metrics.js";
import type { GenerationHost } from "./generation.js";
import { type Failure, type FailureContext, failureOf } from "./http-errors.js";
import { type ExchangeLogs, exchangeLogs, HttpExchange } from "./http-exchange.js";
import type { ModelManager } from "./model-manager.js";
import type { ModelWatcher } from "./model-watcher.js";

/** Ready: takes requests. Draining: finishes what it has. Stopping: the listener is closed. */
export type Stage = "ready" | "draining" | "stopping";

/** What the routes share. */
export class FrontendState implements GenerationHost {
	readonly runtime: DistributedRuntime;
	readonly config: FrontendConfig;
	readonly metrics: FrontendMetrics;
	readonly manager: ModelManager;
	readonly watcher: ModelWatcher;
	/** For the lines about requests. */
	readonly log: Logger;
	/** For the lines that say how requests began and ended. */
	readonly requestLog: Logger;
	readonly routeLogs: RouteLogs;
	private readonly exchangeLogs: ExchangeLogs;
	private readonly exchanges = new WeakMap<ServerResponse, HttpExchange>();
	stage: Stage = "ready";
	private readonly inflight = new Set<ServerResponse>();
	private readonly idleWaiters: (() => void)[] = [];

	constructor(
		runtime: DistributedRuntime,
		config: FrontendConfig,
		metrics: FrontendMetrics,
		manager: ModelManager,
		watcher: ModelWatcher,
		log: Logger,
	) {
		this.runtime = runtime;
		this.config = config;
		this.metrics = metrics;
		this.manager = manager;
		this.watcher = watcher;
		this.log = log;
		this.requestLog = runtime.log.child("dynamo_llm::http::service::metrics");
		this.routeLogs = routeLogs(runtime);
		this.exchangeLogs = exchangeLogs(runtime);
	}

	/** Begins a request whose head was read. */
	begin(request: IncomingMessage, response: ServerResponse, system: boolean): HttpExchange {
		const exchange = new HttpExchange(this.runtime, this.exchangeLogs, request, response, system);
		this.exchanges.set(response, exchange);
		return exchange;
	}

	/** What {@link begin} made for this response. */
	exchangeOf(request: IncomingMessage, response: ServerResponse): HttpExchange {
		return this.exchanges.get(response) ?? this.begin(request, response, false);
	}

	/** Inference requests whose answer is not complete. */
	get inflightCount(): number {
		return this.inflight.size;
	}

	/** Counts an inference request until its response is closed. */
	enter(response: ServerResponse): void {
		this.inflight.add(response);
		response.once("close", () => {
			this.inflight.delete(response);
			if (this.inflight.size === 0) for (const waiter of this.idleWaiters.splice(0)) waiter();
		});
	}

	/** Resolves when no inference request is under way. */
	idle(): Promise<void> {
		if (this.inflight.size === 0) return Promise.resolve();
		return new Promise((resolve) => this.idleWaiters.push(resolve));
	}

	/** Cuts everything that is under way. */
	cutAll(): void {
		for (const response of [...this.inflight]) response.destroy();
	}

	failureOf(error: unknown, context?: FailureContext): Failure {
		return failureOf(error, this.config.overloadStatusCode, context);
	}

	/** Counts a failure of a request that never came as far as being tracked. */
	countFailure(failure: Failure): void {
		this.metrics.failures.withLabelValues(failure.errorClass, failure.reason).inc();
	}

	sendJson(response: ServerResponse, status: number, json: string): void {
		sendJson(response, status, json);
	}

	sendFailure(response: ServerResponse, failure: Failure): void {
		sendFailure(response, failure);
	}
}
