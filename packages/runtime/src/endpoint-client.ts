// SPDX-License-Identifier: Apache-2.0
import { DynamoError, type EndpointRecord, instanceVerdict, parseKey } from "@dynamo-ts/protocols/internal";
import type { Endpoint, EndpointClient } from "./component.js";
import type { Discovery, DiscoveryEvent, Watch } from "./discovery/discovery.js";
import type { Logger } from "./observability/logging.js";
import type {
	ActiveRequest,
	OutgoingRequest,
	PlaneRequest,
	RequestOptions,
	RequestPlaneClient,
	ResponseSink,
} from "./request-plane/request-plane.js";

export interface EndpointClientOptions {
	readonly endpoint: Endpoint;
	readonly discovery: Discovery;
	readonly plane: RequestPlaneClient;
	/** How long a failed instance is put aside, milliseconds. */
	readonly inhibitedDurationMs: number;
	readonly log: Logger;
	readonly onClose: (client: DiscoveredEndpointClient) => void;
}

/** So many failures of an instance in a row put it aside. */
const MOST_STRIKES = 5;

/** Follows the instances of one endpoint in discovery and sends requests to them. */
export class DiscoveredEndpointClient implements EndpointClient {
	readonly endpoint: Endpoint;
	readonly #options: EndpointClientOptions;
	readonly #byId = new Map<bigint, EndpointRecord>();
	/** Until when an instance is put aside; only instances that are in discovery have an entry. */
	readonly #inhibited = new Map<bigint, number>();
	/** Failures in a row, by instance; as long as there is none, which is the rule, nothing is kept. */
	readonly #strikes = new Map<bigint, number>();
	readonly #calls = new Map<bigint, Set<PlaneRequest>>();
	readonly #listeners = new Set<() => void>();
	#instances: readonly EndpointRecord[] = [];
	#available: readonly EndpointRecord[] = [];
	#timer: NodeJS.Timeout | undefined;
	#watch: Watch | undefined;
	#closed = false;

	private constructor(options: EndpointClientOptions) {
		this.#options = options;
		this.endpoint = options.endpoint;
	}

	static async open(options: EndpointClientOptions): Promise<DiscoveredEndpointClient> {
		const client = new DiscoveredEndpointClient(options);
		const watch = await options.discovery.watch("v1/instances", (event) => client.#onEvent(event));
		if (client.#closed) watch.close();
		else client.#watch = watch;
		return client;
	}

	instances(): readonly EndpointRecord[] {
		return this.#instances;
	}

	available(): readonly EndpointRecord[] {
		return this.#available;
	}

	onChange(callback: () => void): () => void {
		this.#listeners.add(callback);
		return () => void this.#listeners.delete(callback);
	}

	waitForInstances(timeoutMs: number): Promise<readonly EndpointRecord[]> {
		if (this.#instances.length > 0) return Promise.resolve(this.#instances);
		const { namespace, component, name } = this.endpoint.id;
		return new Promise((resolve, reject) => {
			const stop = this.onChange(() => {
				if (this.#instances.length === 0) return;
				stop();
				clearTimeout(timer);
				resolve(this.#instances);
			});
			const timer = setTimeout(() => {
				stop();
				reject(
					new DynamoError(
						"Unavailable",
						`no instance of ${namespace}/${component}/${name} appeared in ${this.#options.discovery.backend} discovery within ${timeoutMs} ms`,
					),
				);
			}, timeoutMs);
		});
	}

	reportFailure(instanceId: bigint): void {
		if (!this.#byId.has(instanceId) || this.#closed || this.#options.inhibitedDurationMs === 0) return;
		this.#inhibited.set(instanceId, performance.now() + this.#options.inhibitedDurationMs);
		this.#rebuild();
	}

	send(
		instance: EndpointRecord,
		request: OutgoingRequest,
		sink: ResponseSink,
		options?: RequestOptions,
	): ActiveRequest {
		const id = instance.instance_id;
		const call = new TrackedCall(sink, (error) => {
			const calls = this.#calls.get(id);
			calls?.delete(sent);
			if (calls?.size === 0) this.#calls.delete(id);
			if (this.#closed) return;
			const found = error === undefined ? "healthy" : instanceVerdict(error);
			const doubtful = options?.blameIsShared === true && error?.errorClass === "Disconnected";
			const verdict = found === "fault" && doubtful ? "failure" : found;
			if (verdict === "healthy") {
				if (this.#strikes.size > 0) this.#strikes.delete(id);
			} else if (verdict === "fault" || (verdict === "failure" && this.#strike(id))) {
				const fields = { instance_id: id, request_id: request.id, error: error?.message };
				this.#options.log.warn("instance put aside after a failure", fields, request.span);
				this.reportFailure(id);
			}
		});
		const sent = this.#options.plane.send(instance, request, call, options);
		let calls = this.#calls.get(id);
		if (calls === undefined) {
			calls = new Set();
			this.#calls.set(id, calls);
		}
		calls.add(sent);
		return sent;
	}

	close(): void {
		if (this.#closed) return;
		this.#closed = true;
		this.#watch?.close();
		clearTimeout(this.#timer);
		this.#listeners.clear();
		this.#options.onClose(this);
	}

	/**
	 * Counts a failure that may be the request's as well as the instance's.
	 * @returns true when there were too many in a row. The last instance that is left is never put aside for that.
	 */
	#strike(id: bigint): boolean {
		if (!this.#byId.has(id)) return false;
		const strikes = Math.min(MOST_STRIKES, (this.#strikes.get(id) ?? 0) + 1);
		this.#strikes.set(id, strikes);
		if (strikes < MOST_STRIKES) return false;
		// The next one after the pause decides anew: a failure puts it aside again, a success clears it.
		return this.#available.some(({ instance_id }) => instance_id !== id);
	}

	#onEvent(event: DiscoveryEvent): void {
		const { namespace, component, name } = this.endpoint.id;
		if (event.type === "put") {
			const { record } = event;
			if (record.type !== "Endpoint") return;
			if (record.namespace !== namespace || record.component !== component || record.endpoint !== name) return;
			this.#byId.set(record.instance_id, record);
			this.#inhibited.delete(record.instance_id);
			this.#strikes.delete(record.instance_id);
			this.#rebuild();
			return;
		}
		const key = parseKey(event.key);
		if (key?.bucket !== "v1/instances") return;
		const { endpoint, id } = key;
		if (endpoint.namespace !== namespace || endpoint.component !== component || endpoint.name !== name) return;
		if (!this.#byId.delete(id)) return;
		this.#inhibited.delete(id);
		this.#strikes.delete(id);
		this.#rebuild();
		for (const call of [...(this.#calls.get(id) ?? [])]) call.instanceGone();
	}

	#rebuild(): void {
		const now = performance.now();
		let next = Number.POSITIVE_INFINITY;
		for (const [id, until] of this.#inhibited) {
			if (until <= now) this.#inhibited.delete(id);
			else next = Math.min(next, until);
		}
		clearTimeout(this.#timer);
		if (next !== Number.POSITIVE_INFINITY) {
			this.#timer = setTimeout(() => this.#rebuild(), next - now + 1);
			this.#timer.unref();
		}
		const instances = [...this.#byId.values()];
		const available = instances.filter((record) => !this.#inhibited.has(record.instance_id));
		// A timer counts from the start of its turn, so after a long turn it fires too early and finds nothing to do.
		if (isSameList(instances, this.#instances) && isSameList(available, this.#available)) return;
		this.#instances = instances;
		this.#available = available.length === instances.length ? instances : available;
		for (const listener of [...this.#listeners]) {
			try {
				listener();
			} catch (error) {
				this.#options.log.error("an instance listener failed", { error });
			}
		}
	}
}

function isSameList(a: readonly EndpointRecord[], b: readonly EndpointRecord[]): boolean {
	return a.length === b.length && a.every((record, i) => record === b[i]);
}

/** Hears of the end before the sink does, so that a sink which retries sees the failed instance put aside. */
class TrackedCall implements ResponseSink {
	readonly #sink: ResponseSink;
	readonly #onDone: (error: DynamoError | undefined) => void;

	constructor(sink: ResponseSink, onDone: (error: DynamoError | undefined) => void) {
		this.#sink = sink;
		this.#onDone = onDone;
	}

	onOpen(): void {
		this.#sink.onOpen?.();
	}

	onItem(item: Parameters<ResponseSink["onItem"]>[0]): void {
		this.#sink.onItem(item);
	}

	onEnd(): void {
		this.#onDone(undefined);
		this.#sink.onEnd();
	}

	onError(error: DynamoError): void {
		this.#onDone(error);
		this.#sink.onError(error);
	}
}
