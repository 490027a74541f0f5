// SPDX-License-Identifier: Apache-2.0
import { DynamoError, type EndpointRecord, endpointPath } from "@dynamo-ts/protocols/internal";
import type { Endpoint, ServedEndpoint, ServeOptions } from "./component.js";
import type { RuntimeConfig } from "./config.js";
import type { Discovery } from "./discovery/discovery.js";
import type { Health } from "./observability/health.js";
import type { Logger } from "./observability/logging.js";
import type {
	EndpointHandler,
	EndpointObserver,
	EndpointRegistration,
	RequestPlaneServer,
} from "./request-plane/request-plane.js";

export interface EndpointServerOptions {
	readonly endpoint: Endpoint;
	readonly config: RuntimeConfig;
	readonly discovery: Discovery;
	readonly server: RequestPlaneServer;
	readonly health: Health;
	readonly observer: EndpointObserver;
	readonly log: Logger;
	readonly onStop: (served: EndpointServer) => void;
}

/** One endpoint as this process serves it: handler, record, readiness. */
export class EndpointServer implements ServedEndpoint {
	readonly record: EndpointRecord;
	readonly #options: EndpointServerOptions;
	readonly #gating: boolean;
	readonly #registration: EndpointRegistration;
	#registered = false;
	#stopped = false;
	/** Writes and deletes of the record, one after the other. */
	#recordWork: Promise<void> = Promise.resolve();

	constructor(options: EndpointServerOptions, handler: EndpointHandler, serve: ServeOptions) {
		const { endpoint, config, discovery, server } = options;
		const path = endpointPath(discovery.instanceId, endpoint.id);
		this.#options = options;
		this.#gating = serve.healthCheckPayload !== undefined;
		this.#registration = server.register(path, handler, options.observer);
		this.record = {
			type: "Endpoint",
			namespace: endpoint.id.namespace,
			component: endpoint.id.component,
			endpoint: endpoint.id.name,
			instance_id: discovery.instanceId,
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
			await this.#options.discovery.put(this.record);
			this.#registered = true;
			this.#options.health.setEndpointReady(this.#options.endpoint.name, true);
			this.#options.log.info("endpoint registered", { endpoint: this.#name, instance_id: this.record.instance_id });
		});
	}

	unregister(): Promise<void> {
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
