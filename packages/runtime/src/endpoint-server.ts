// SPDX-License-Identifier: Apache-2.0
import { DynamoError, type EndpointRecord, endpointPath, parseJson } from "@dynamo-ts/protocols/internal";
import type { Endpoint, ServedEndpoint, ServeOptions } from "./component.js";
import type { RuntimeConfig } from "./config.js";
import type { Discovery } from "./discovery/discovery.js";
import { Canary } from "./observability/canary.js";
import type { Health } from "./observability/health.js";
import type { Logger } from "./observability/logging.js";
import type {
	EndpointHandler,
	EndpointObserver,
	EndpointRegistration,
	RequestPlaneServer,
} from "./request-plane/request-plane.js";
import type { Gate } from "./request-plane/turnstile.js";

export interface EndpointServerOptions {
	readonly endpoint: Endpoint;
	readonly config: RuntimeConfig;
	readonly discovery: Discovery;
	readonly server: RequestPlaneServer;
	readonly health: Health;
	readonly observer: EndpointObserver;
	/** Limits the requests of endpoints that bring a health payload: those have an engine behind them. */
	readonly admission?: Gate | undefined;
	/** Limits the requests of the process. */
	readonly pool?: Gate | undefined;
	readonly log: Logger;
	readonly onStop: (served: EndpointServer) => void;
}

/** Every item that goes out tells the canary that the endpoint works. Errors are no items. */
function watched(observer: EndpointObserver, canary: Canary): EndpointObserver {
	return {
		onInvalid: (kind) => observer.onInvalid(kind),
		onRequest: (bytes, headers, refused) => {
			const inner = observer.onRequest(bytes, headers, refused);
			return {
				span: inner.span,
				onPrologue: () => inner.onPrologue(),
				onResponseBytes: (count) => {
					canary.activity();
					inner.onResponseBytes(count);
				},
				onError: (kind) => inner.onError(kind),
				onFail: (error) => inner.onFail(error),
				onCancel: (kind) => inner.onCancel(kind),
				onClose: () => inner.onClose(),
			};
		},
	};
}

/** One endpoint as this process serves it: handler, record, readiness. */
export class EndpointServer implements ServedEndpoint {
	readonly record: EndpointRecord;
	readonly #options: EndpointServerOptions;
	readonly #gating: boolean;
	readonly #registration: EndpointRegistration;
	/** Decides about readiness while the endpoint is registered; undefined where health checks are off. */
	readonly #canary: Canary | undefined;
	#registered = false;
	#stopped = false;
	/** Ends the wait of a registration that is under way, when it is of no more use. */
	#waiting = new AbortController();
	/** Writes and deletes of the record, one after the other. */
	#recordWork: Promise<void> = Promise.resolve();

	constructor(options: EndpointServerOptions, handler: EndpointHandler, serve: ServeOptions) {
		const { endpoint, config, discovery, server } = options;
		const instanceId = serve.instanceId ?? discovery.instanceId;
		const path = endpointPath(instanceId, endpoint.id);
		this.#options = options;
		this.#gating = serve.healthCheckPayload !== undefined;
		this.#canary = this.#gating && config.healthCheckEnabled ? this.#makeCanary(handler, serve) : undefined;
		const observer = this.#canary === undefined ? options.observer : watched(options.observer, this.#canary);
		this.#registration = server.register(path, handler, observer);
		const gates = [options.pool, this.#gating ? options.admission : undefined];
		this.#registration.limit(...gates.filter((gate) => gate !== undefined));
		this.record = {
			type: "Endpoint",
			namespace: endpoint.id.namespace,
			component: endpoint.id.component,
			endpoint: endpoint.id.name,
			instance_id: instanceId,
			transport: server.address(path),
			...(serve.deviceType === undefined ? {} : { device_type: serve.deviceType }),
			request_plane_codec: config.requestPlaneCodec,
		};
		options.health.setEndpointReady(endpoint.name, false, { gating: this.#gating });
	}

	get inflight(): number {
		return this.#registration.inflight;
	}

	/** True while the record is in discovery. */
	get registered(): boolean {
		return this.#registered;
	}

	register(): Promise<void> {
		return this.#change(async () => {
			if (this.#stopped) throw new DynamoError("Unavailable", `endpoint ${this.#name} is stopped`);
			if (this.#registered) return;
			await this.#registration.ready(this.#waiting.signal);
			await this.#options.discovery.put(this.record);
			this.#registered = true;
			if (this.#canary === undefined) this.#options.health.setEndpointReady(this.#options.endpoint.name, true);
			else this.#canary.start();
			this.#options.log.info("endpoint registered", { endpoint: this.#name, instance_id: this.record.instance_id });
		});
	}

	unregister(): Promise<void> {
		this.#waiting.abort();
		this.#waiting = new AbortController();
		this.#canary?.stop();
		this.#options.health.setEndpointReady(this.#options.endpoint.name, false);
		return this.#change(async () => {
			if (!this.#registered) return;
			this.#registered = false;
			await this.#options.discovery.delete(this.record);
		});
	}

	async drain(timeoutMs: number): Promise<boolean> {
		await this.unregister();
		this.#registration.refuse();
		return await this.#registration.drained(timeoutMs);
	}

	async stop(): Promise<void> {
		if (this.#stopped) return;
		this.#stopped = true;
		await this.unregister();
		this.#registration.close();
		this.#options.health.removeEndpoint(this.#options.endpoint.name);
		this.#options.onStop(this);
	}

	#makeCanary(handler: EndpointHandler, serve: ServeOptions): Canary {
		const { config, health, endpoint, log } = this.#options;
		return new Canary({
			handler,
			payload: config.healthCheckPayload === "" ? serve.healthCheckPayload : parseJson(config.healthCheckPayload),
			waitMs: config.canaryWaitMs,
			timeoutMs: config.healthCheckTimeoutMs,
			onResult: (healthy) => health.setEndpointReady(endpoint.name, healthy),
			log,
		});
	}

	get #name(): string {
		const { namespace, component, name } = this.#options.endpoint.id;
		return `${namespace}/${component}/${name}`;
	}

	#change(work: () => Promise<void>): Promise<void> {
		const done = this.#recordWork.then(work);
		this.#recordWork = done.catch(() => {});
		return done;
	}
}
