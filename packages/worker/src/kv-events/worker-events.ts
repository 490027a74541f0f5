// SPDX-License-Identifier: Apache-2.0
// All that a worker tells on the event plane, from one engine.
import type { Engine, KvEventTap } from "@dynamo-ts/engine";
import type { EndpointId } from "@dynamo-ts/protocols/internal";
import type { DistributedRuntime } from "@dynamo-ts/runtime";
import { EngineSocket } from "./engine-socket.js";
import { KvEventPublisher } from "./kv-event-publisher.js";
import type { KvEventsConfig } from "./kv-events-config.js";
import { LoadPublisher } from "./load-publisher.js";

export interface WorkerEventsOptions {
	readonly engine: Engine;
	readonly endpoint: EndpointId;
	/** Tokens per block. */
	readonly blockSize: number;
	readonly tap: KvEventTap | undefined;
	readonly kvEvents: KvEventsConfig;
	/** Of the metrics of the endpoints that are served for it. */
	readonly metricLabels?: Readonly<Record<string, string>> | undefined;
}

export class WorkerEvents {
	readonly #parts: { close(): Promise<void>; leave?(): Promise<void> }[] = [];
	readonly #engine: Engine;
	#load: LoadPublisher | undefined;

	private constructor(engine: Engine) {
		this.#engine = engine;
	}

	/**
	 * @throws DynamoError `Unavailable` when the event plane or a socket cannot be used.
	 */
	static async open(runtime: DistributedRuntime, options: WorkerEventsOptions): Promise<WorkerEvents> {
		const events = new WorkerEvents(options.engine);
		try {
			await events.#open(runtime, options);
		} catch (error) {
			await events.close();
			throw error;
		}
		return events;
	}

	async #open(runtime: DistributedRuntime, options: WorkerEventsOptions): Promise<void> {
		const { engine, endpoint, blockSize, tap, kvEvents, metricLabels } = options;
		this.#load = await LoadPublisher.open(runtime, engine, endpoint);
		this.#parts.push(this.#load);
		if (tap === undefined || !kvEvents.enabled) return;
		const publisher = await KvEventPublisher.open(runtime, { endpoint, blockSize, metricLabels });
		this.#parts.push(publisher);
		let socket: EngineSocket | undefined;
		if (kvEvents.socket !== undefined) {
			socket = await EngineSocket.open(kvEvents.socket);
			this.#parts.push(socket);
		}
		tap.drainTo((batch) => {
			publisher.publish(batch);
			socket?.publish(batch);
		});
	}

	/** The engine as requests should see it: what it gives them moves the load that is told. */
	get watched(): Engine {
		if (this.#load === undefined) throw new Error("the worker's events are not open");
		return watchOutputs(this.#engine, this.#load);
	}

	/** Takes endpoints out of discovery, as the first step of a worker that leaves. Events are still told. */
	async leave(): Promise<void> {
		await Promise.all(this.#parts.map((part) => part.leave?.()));
	}

	/** Idempotent. */
	async close(): Promise<void> {
		await Promise.all(this.#parts.splice(0).map((part) => part.close()));
	}
}

/** Engines name requests `{context id}#{number}`; routers know the context id. */
function contextIdOf(requestId: string): string {
	const at = requestId.lastIndexOf("#");
	return at < 0 ? requestId : requestId.slice(0, at);
}

function watchOutputs(engine: Engine, load: LoadPublisher): Engine {
	return {
		start: () => engine.start(),
		submit(request, onOutput) {
			let prefilling = true;
			engine.submit(request, (output) => {
				if (prefilling) {
					prefilling = false;
					load.prefillCompleted(contextIdOf(request.requestId));
				}
				load.touch();
				onOutput(output);
			});
			load.touch();
		},
		abort: (requestId) => engine.abort(requestId),
		stats: () => engine.stats(),
		onFailure: (callback) => engine.onFailure(callback),
		onKvEvents: (callback) => engine.onKvEvents(callback),
		close: () => engine.close(),
	};
}
