// SPDX-License-Identifier: Apache-2.0
import type { DeviceType, EndpointId, EndpointRecord } from "@dynamo-ts/protocols/internal";
import type { MetricsRegistry } from "./observability/metrics.js";
import type {
	ActiveRequest,
	EndpointHandler,
	OutgoingRequest,
	RequestOptions,
	ResponseSink,
} from "./request-plane/request-plane.js";

/** A group of components that belong to one deployment. */
export interface Namespace {
	readonly name: string;
	readonly metrics: MetricsRegistry;
	/** @throws DynamoError `InvalidArgument` for an empty name or one with a `/`. */
	component(name: string): Component;
}

/** A role within a namespace (`backend`, `prefill`); its instances are interchangeable. */
export interface Component {
	readonly namespace: Namespace;
	readonly name: string;
	readonly metrics: MetricsRegistry;
	/** @throws DynamoError `InvalidArgument` for an empty name or one with a `/`. */
	endpoint(name: string): Endpoint;
}

export interface ServeOptions {
	/** A request that proves that the endpoint works; its presence makes the endpoint count for readiness. */
	readonly healthCheckPayload?: unknown;
	/** Told to routers in the endpoint's record. */
	readonly deviceType?: DeviceType;
	/** The instance to appear as, where that is not this process: what is asked here concerns another one. */
	readonly instanceId?: bigint;
	/** Labels of the endpoint's metrics beside those that say where it is, such as the model. */
	readonly metricLabels?: Readonly<Record<string, string>>;
	/** False: listen now, write the record when {@link ServedEndpoint.register} is called. Default true. */
	readonly register?: boolean;
}

/** A named operation of a component (`generate`). */
export interface Endpoint {
	readonly component: Component;
	readonly name: string;
	readonly id: EndpointId;
	readonly metrics: MetricsRegistry;
	/**
	 * Starts to serve this endpoint as an instance of this process.
	 * @throws DynamoError `Conflict` when this process serves it already, `Unavailable` when the port or the
	 * discovery store cannot be used.
	 */
	serve(handler: EndpointHandler, options?: ServeOptions): Promise<ServedEndpoint>;
	/** A client that knows the endpoint's live instances (all those that are there when the promise resolves). */
	client(): Promise<EndpointClient>;
}

/** An endpoint that this process serves. */
export interface ServedEndpoint {
	readonly record: EndpointRecord;
	/** Requests being handled now. */
	readonly inflight: number;
	/** Writes the record, so that clients find the instance. Idempotent. */
	register(): Promise<void>;
	/** Deletes the record. New requests are still taken. Idempotent. */
	unregister(): Promise<void>;
	/**
	 * Unregisters, refuses new requests and waits for those under way.
	 * @returns false when some were still under way after `timeoutMs` milliseconds.
	 */
	drain(timeoutMs: number): Promise<boolean>;
	/** Unregisters and ends what is still under way. Idempotent. */
	stop(): Promise<void>;
}

/** Sends requests to the live instances of one endpoint. */
export interface EndpointClient {
	readonly endpoint: Endpoint;
	/** All instances in discovery. The same array until something changes. */
	instances(): readonly EndpointRecord[];
	/** Those that have not failed within the last seconds. The same array until something changes. */
	available(): readonly EndpointRecord[];
	/** Calls back after {@link instances} or {@link available} changed; returns how to end that. */
	onChange(callback: () => void): () => void;
	/** @throws DynamoError `Unavailable` when there is none after `timeoutMs` milliseconds. */
	waitForInstances(timeoutMs: number): Promise<readonly EndpointRecord[]>;
	/** Puts an instance aside for the inhibition time, or until discovery shows it anew. */
	reportFailure(instanceId: bigint): void;
	/**
	 * Sends one request to one instance. Failures that speak against the instance (cannot connect, disconnected, no
	 * answer in time, unavailable) put it aside. Never throws.
	 */
	send(instance: EndpointRecord, request: OutgoingRequest, sink: ResponseSink, options?: RequestOptions): ActiveRequest;
	close(): void;
}
