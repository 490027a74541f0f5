// SPDX-License-Identifier: Apache-2.0
import {
	type Annotated,
	DynamoError,
	type EndpointRecord,
	fromWireError,
	splitTcpAddress,
	toWireError,
} from "@dynamo-ts/protocols/internal";
import type { Logger } from "../observability/logging.js";
import { type DeadlineHolder, Deadlines, deadlineAfter } from "./deadlines.js";
import { type ActiveResponse, EndpointEntry } from "./endpoint-entry.js";
import { CancellableRequest } from "./ingress-request.js";
import type { PlaneClientMetrics } from "./plane-client-metrics.js";
import { headersToSend, REQUEST_HEADERS } from "./request-headers.js";
import type {
	CancelKind,
	EndpointHandler,
	EndpointObserver,
	EndpointRegistration,
	OutgoingRequest,
	PlaneRequest,
	RequestObserver,
	RequestOptions,
	RequestPlaneClient,
	RequestPlaneServer,
	ResponseSink,
} from "./request-plane.js";
import { flushAfterTurn } from "./turn-flush.js";

/** Endpoints of one process by path; what a network is to the other planes. */
export type InProcessRegistry = Map<string, EndpointEntry>;

const registries = new WeakMap<object, InProcessRegistry>();

/** The endpoints of all who share `world`. */
export function inProcessRegistryOf(world: object): InProcessRegistry {
	let registry = registries.get(world);
	if (registry === undefined) {
		registry = new Map();
		registries.set(world, registry);
	}
	return registry;
}

export interface InProcessOptions {
	readonly firstResponseTimeoutMs: number;
	readonly idleTimeoutMs: number;
	/** Most items that may wait for a paused receiver. */
	readonly maxWaitingItems: number;
	/** Absent: nobody counts. */
	readonly metrics?: PlaneClientMetrics | undefined;
	readonly log: Logger;
}

/** Serves endpoints to callers of the same process. */
export class InProcessServer implements RequestPlaneServer {
	readonly #registry: InProcessRegistry;
	readonly #own = new Set<EndpointEntry>();

	constructor(registry: InProcessRegistry) {
		this.#registry = registry;
	}

	register(path: string, handler: EndpointHandler, observer?: EndpointObserver): EndpointRegistration {
		if (this.#registry.has(path)) throw new DynamoError("Conflict", `endpoint ${path} is served already`);
		const entry = new EndpointEntry(path, handler, observer, () => {
			this.#registry.delete(path);
			this.#own.delete(entry);
		});
		this.#registry.set(path, entry);
		this.#own.add(entry);
		return entry;
	}

	/** The shape of a TCP address with a host that no resolver knows. */
	address(path: string): EndpointRecord["transport"] {
		return { tcp: `in-process:0/${path}` };
	}

	async close(): Promise<void> {
		for (const entry of [...this.#own]) entry.close();
	}
}

/** Calls endpoints of the same process; objects are handed over as they are. */
export class InProcessClient implements RequestPlaneClient {
	readonly #registry: InProcessRegistry;
	readonly #options: InProcessOptions;
	readonly #deadlines = new Deadlines();
	readonly #active = new Set<InProcessCall>();

	constructor(registry: InProcessRegistry, options: InProcessOptions) {
		this.#registry = registry;
		this.#options = options;
	}

	send(
		instance: EndpointRecord,
		request: OutgoingRequest,
		sink: ResponseSink,
		options: RequestOptions = {},
	): PlaneRequest {
		const address = "tcp" in instance.transport ? instance.transport.tcp : instance.transport.nats_tcp;
		const call = new InProcessCall(
			request,
			sink,
			{
				...this.#options,
				target: address,
				firstResponseTimeoutMs: options.firstResponseTimeoutMs ?? this.#options.firstResponseTimeoutMs,
				idleTimeoutMs: options.idleTimeoutMs ?? this.#options.idleTimeoutMs,
			},
			this.#deadlines,
			() => {
				this.#active.delete(call);
				this.#options.metrics?.ended();
			},
		);
		this.#active.add(call);
		this.#options.metrics?.began();
		this.#options.metrics?.handedOver(performance.now(), 0);
		setImmediate(() => call.dispatch(this.#registry.get(splitTcpAddress(address)?.path ?? address)));
		return call;
	}

	async close(): Promise<void> {
		for (const call of [...this.#active]) call.giveUp(new DynamoError("Cancelled", "the runtime is shutting down"));
	}
}

interface CallOptions extends InProcessOptions {
	readonly target: string;
}

const NEVER = Number.POSITIVE_INFINITY;

/**
 * Both ends of one request. As over a socket, neither side's calls reach the other within the same turn of the event
 * loop, and items come in order, many per turn.
 */
class InProcessCall implements PlaneRequest, ActiveResponse, DeadlineHolder {
	readonly id: string;
	readonly #outgoing: OutgoingRequest;
	readonly #sink: ResponseSink;
	readonly #options: CallOptions;
	readonly #deadlines: Deadlines;
	readonly #onFinished: () => void;
	#entry: EndpointEntry | undefined;
	#request: CancellableRequest | undefined;
	#observer: RequestObserver | undefined;
	#waiting: Annotated<unknown>[] = [];
	#flushAsked = false;
	/** The handler ended the response; what is waiting is still to be delivered. */
	#ended = false;
	#error: DynamoError | undefined;
	/** The sink was told the end. */
	#finished = false;
	#released = false;
	#paused = false;
	#stopAsked = false;
	#opened = false;
	#itemAt: number;
	#delivered = false;
	readonly #startedAt = performance.now();

	constructor(
		outgoing: OutgoingRequest,
		sink: ResponseSink,
		options: CallOptions,
		deadlines: Deadlines,
		onFinished: () => void,
	) {
		this.id = outgoing.id;
		this.#outgoing = outgoing;
		this.#sink = sink;
		this.#options = options;
		this.#deadlines = deadlines;
		this.#onFinished = onFinished;
		this.#itemAt = deadlineAfter(performance.now(), options.firstResponseTimeoutMs);
		deadlines.add(this);
	}

	/** Brings the request to its endpoint, in a turn after the one that sent it. */
	dispatch(entry: EndpointEntry | undefined): void {
		if (this.#finished) return;
		if (entry === undefined) {
			this.giveUp(new DynamoError("CannotConnect", `worker ${this.#options.target} is not there`));
			return;
		}
		if (entry.refusing) {
			this.giveUp(new DynamoError("WorkerUnavailable", `worker ${this.#options.target} is shutting down`));
			return;
		}
		const fullness = entry.fullness(0);
		if (fullness !== undefined) {
			this.giveUp(new DynamoError("WorkerOverloaded", `worker ${this.#options.target} refused: ${fullness}`));
			return;
		}
		const { log } = this.#options;
		const headers = { ...headersToSend(this.#outgoing), [REQUEST_HEADERS.endpointPath]: entry.path };
		this.#request = new CancellableRequest(
			{ id: this.id, headers, payload: this.#outgoing.payload, codec: "msgpack", receivedAt: performance.now() },
			(error) => log.error("a cancellation callback failed", { request_id: this.id, error }, this.#observer?.span),
		);
		this.#entry = entry;
		this.#observer = entry.observer.onRequest(0, headers);
		this.#request.span = this.#observer.span;
		this.#observer.onPrologue();
		this.#options.metrics?.acknowledged(this.#startedAt);
		entry.run(this.#request, this, this.#observer);
		// An error in the turn of the request itself takes the place of the opening, as on other planes.
		this.#askFlush();
		if (this.#stopAsked) this.#cancel("stop");
	}

	// -- the worker's side

	get closed(): boolean {
		return this.#ended || this.#released;
	}

	get bufferedBytes(): number {
		return this.#waiting.length;
	}

	send(item: Annotated<unknown>): void {
		if (this.closed) return;
		this.#waiting.push(item);
		if (this.#waiting.length > this.#options.maxWaitingItems) {
			this.#observer?.onError("publish_response");
			this.abandon("disconnect");
			return;
		}
		this.#askFlush();
	}

	fail(error: DynamoError): void {
		if (this.closed) return;
		this.#observer?.onFail(error);
		// Over the wire, as with every other plane, a cause and a stack are lost and nothing else.
		this.#error = fromWireError(toWireError(error));
		this.end();
	}

	end(): void {
		if (this.closed) return;
		this.#ended = true;
		this.#request?.finish();
		this.#askFlush();
	}

	abandon(kind: CancelKind): void {
		this.#cancel(kind);
		this.giveUp(
			new DynamoError(
				"Disconnected",
				`the response stream of worker ${this.#options.target} ended before it was complete`,
			),
		);
	}

	flush(): void {
		this.#flushAsked = false;
		if (this.#paused || this.#finished) return;
		const items = this.#waiting;
		this.#waiting = [];
		if (!this.#opened && (items.length > 0 || this.#error === undefined)) {
			this.#opened = true;
			this.#sink.onOpen?.();
		}
		for (let i = 0; i < items.length; i++) {
			const item = items[i] as Annotated<unknown>;
			if (item.event === "error" || (item.error !== undefined && item.error !== null)) {
				this.giveUp(
					item.error !== undefined && item.error !== null
						? fromWireError(item.error)
						: new DynamoError("Unknown", `worker sent an error: ${item.comment?.join("; ") ?? "no message"}`),
				);
				return;
			}
			this.#itemAt = deadlineAfter(this.#deadlines.now, this.#options.idleTimeoutMs);
			if (!this.#delivered) {
				this.#delivered = true;
				this.#options.metrics?.firstItem(this.#startedAt);
			}
			try {
				this.#sink.onItem(item);
			} catch (error) {
				this.giveUp(new DynamoError("Internal", "the receiver of a response failed", { cause: error }));
			}
			if (this.#finished) return;
			if (this.#paused) {
				this.#waiting = [...items.slice(i + 1), ...this.#waiting];
				return;
			}
		}
		if (this.#ended && this.#waiting.length === 0) this.#finish(this.#error);
	}

	// -- the caller's side

	kill(): void {
		if (this.#finished) return;
		setImmediate(() => this.#cancel("kill"));
		this.giveUp(new DynamoError("Cancelled", `request ${this.id} was cancelled`));
	}

	stop(): void {
		if (this.#finished || this.#stopAsked) return;
		this.#stopAsked = true;
		if (this.#request !== undefined) setImmediate(() => this.#cancel("stop"));
	}

	pause(): void {
		this.#paused = true;
	}

	resume(): void {
		if (!this.#paused) return;
		this.#paused = false;
		this.#itemAt = Math.max(this.#itemAt, deadlineAfter(this.#deadlines.now, this.#options.idleTimeoutMs));
		this.#askFlush();
	}

	instanceGone(): void {
		// The handler runs in this process: if it is gone, its endpoint has said so itself.
		if (this.#request === undefined) {
			this.giveUp(new DynamoError("Disconnected", `worker ${this.#options.target} left before it answered`));
		}
	}

	checkDeadlines(now: number): void {
		if (now < this.#itemAt || this.#paused || this.#finished) return;
		setImmediate(() => this.#cancel("kill"));
		this.giveUp(
			new DynamoError("ResponseTimeout", `worker ${this.#options.target} sent no response within its deadline`),
		);
	}

	/** Ends the caller's side with an error, whatever the worker's side does. */
	giveUp(error: DynamoError): void {
		this.#finish(error);
	}

	#askFlush(): void {
		if (this.#flushAsked) return;
		this.#flushAsked = true;
		flushAfterTurn(this);
	}

	#finish(error: DynamoError | undefined): void {
		if (this.#finished) return;
		this.#finished = true;
		this.#itemAt = NEVER;
		this.#waiting = [];
		this.#deadlines.remove(this);
		this.#onFinished();
		// A response that goes on without a reader is over for the worker too, as when a socket closes.
		if (this.#ended) this.#release();
		else setImmediate(() => this.#cancel("disconnect"));
		try {
			if (error === undefined) this.#sink.onEnd();
			else this.#sink.onError(error);
		} catch (failure) {
			this.#options.log.error("the receiver of a response failed", { error: failure });
		}
	}

	#cancel(kind: CancelKind): void {
		const request = this.#request;
		if (request === undefined || this.#released) return;
		if (!this.#ended) {
			if (request.cancelled === undefined) this.#observer?.onCancel(kind);
			request.cancel(kind);
		}
		if (kind !== "stop") this.#release();
	}

	#release(): void {
		if (this.#released || this.#entry === undefined) return;
		this.#released = true;
		this.#request?.finish();
		this.#observer?.onClose();
		this.#entry.done(this);
	}
}
