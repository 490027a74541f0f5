// SPDX-License-Identifier: Apache-2.0
import { type Annotated, DynamoError, type EndpointRecord } from "@dynamo-ts/protocols/internal";
import type { ActiveRequest, OutgoingRequest, RequestOptions, ResponseSink } from "@dynamo-ts/runtime";
import { mayTryAnother } from "./http-errors.js";
import type { WorkerSet } from "./worker-set.js";

/** Most instances that one request is offered to. */
const MAX_ATTEMPTS = 8;

export interface DispatchOptions extends RequestOptions {
	/** Send to this instance and no other. */
	readonly pinned?: EndpointRecord;
	/** Told about each instance that is tried, before it is. */
	readonly onAttempt?: (instance: EndpointRecord) => void;
}

/** The error for a model whose workers are all gone or put aside. */
export function notReadyError(model: string): DynamoError {
	return new DynamoError("Unavailable", `no worker of model ${model} can be reached`, {
		reason: "backend.unavailable",
	});
}

/**
 * Sends a request to an instance that the set's router picks. An instance that turns out not to be reachable is put
 * aside by the client; as long as nothing was delivered the request then goes to another one. The sink hears of the
 * last failure only.
 */
export class Dispatch implements ResponseSink {
	private readonly set: WorkerSet;
	private readonly request: OutgoingRequest;
	private readonly tokenIds: readonly number[] | undefined;
	private readonly sink: ResponseSink;
	private readonly options: DispatchOptions;
	private readonly tried = new Set<bigint>();
	private call: ActiveRequest | undefined;
	private instance: EndpointRecord | undefined;
	private delivered = false;
	private paused = false;
	private over = false;

	/** @param tokenIds the prompt, for the router. */
	constructor(
		set: WorkerSet,
		request: OutgoingRequest,
		tokenIds: readonly number[] | undefined,
		sink: ResponseSink,
		options: DispatchOptions,
	) {
		this.set = set;
		this.request = request;
		this.tokenIds = tokenIds;
		this.sink = sink;
		this.options = options;
	}

	/** Sends. Failures go to the sink, never before this call has returned. */
	start(): void {
		this.set.acquire();
		if (!this.attempt()) queueMicrotask(() => this.finish(() => this.sink.onError(notReadyError(this.set.name))));
	}

	/** Abandons the request: the worker is told, the sink hears nothing more. */
	kill(): void {
		const { call } = this;
		this.finish(() => {});
		call?.kill();
	}

	/** Holds back delivery, and lets the worker feel it. */
	pause(): void {
		this.paused = true;
		this.call?.pause();
	}

	resume(): void {
		this.paused = false;
		this.call?.resume();
	}

	onOpen(): void {
		if (!this.over) this.sink.onOpen?.();
	}

	onItem(item: Annotated<unknown>): void {
		if (this.over) return;
		this.delivered = true;
		this.sink.onItem(item);
	}

	onEnd(): void {
		this.finish(() => this.sink.onEnd());
	}

	onError(error: DynamoError): void {
		if (this.over) return;
		this.leaveInstance();
		if (!this.delivered && this.options.pinned === undefined && mayTryAnother(error) && this.attempt()) return;
		this.finish(() => this.sink.onError(error));
	}

	/** @returns false when there is nobody (else) to ask. */
	private attempt(): boolean {
		if (this.tried.size >= MAX_ATTEMPTS) return false;
		const { pinned, onAttempt } = this.options;
		const candidates = this.set.candidates();
		const fresh =
			this.tried.size === 0 ? candidates : candidates.filter(({ instance_id }) => !this.tried.has(instance_id));
		const routing = { id: this.request.id, ...(this.tokenIds === undefined ? {} : { tokenIds: this.tokenIds }) };
		const instance = pinned ?? this.set.router.pick(fresh, routing);
		if (instance === undefined) return false;
		this.tried.add(instance.instance_id);
		this.instance = instance;
		this.set.router.onStart?.(instance.instance_id, this.request.id);
		onAttempt?.(instance);
		this.call = this.set.client.send(instance, this.request, this, this.options);
		if (this.paused) this.call.pause();
		return true;
	}

	private leaveInstance(): void {
		const { instance } = this;
		if (instance === undefined) return;
		this.instance = undefined;
		this.set.router.onEnd?.(instance.instance_id, this.request.id);
	}

	private finish(tell: () => void): void {
		if (this.over) return;
		this.over = true;
		this.call = undefined;
		this.leaveInstance();
		this.set.release();
		tell();
	}
}
