// SPDX-License-Identifier: Apache-2.0
import {
	DynamoError,
	type EndpointRecord,
	endpointPath,
	idHex,
	LABELS,
	METRIC_PREFIXES,
	METRICS,
} from "@dynamo-ts/protocols/internal";
import type { Endpoint, EndpointClient, Namespace, ServedEndpoint, ServeOptions } from "./component.js";
import { type EndpointHost, NamespaceTree } from "./component-tree.js";
import { type RuntimeConfig, runtimeConfigFromEnv } from "./config.js";
import type { Discovery } from "./discovery/discovery.js";
import { type MemStore, sharedMemStore } from "./discovery/mem.js";
import { openDiscovery } from "./discovery/open.js";
import { DiscoveredEndpointClient } from "./endpoint-client.js";
import { EndpointServer } from "./endpoint-server.js";
import { createEventPlane } from "./event-plane/create-event-plane.js";
import type { EventPlane } from "./event-plane/event-plane.js";
import { NatsConnection } from "./net/nats-connection.js";
import { loadTcpTls, type TcpTls } from "./net/tcp-tls.js";
import { createHealth, type Health } from "./observability/health.js";
import { createLogger, type Logger, type LogRelay } from "./observability/logging.js";
import { createMetricsRegistry, type MetricsRegistry } from "./observability/metrics.js";
import { openGauge } from "./observability/open-family.js";
import { type SystemServer, startSystemServer } from "./observability/system-server.js";
import type { Tracer } from "./observability/tracing/span.js";
import { Telemetry } from "./observability/tracing/telemetry.js";
import { Admission } from "./request-plane/admission.js";
import type { CallHomeOptions } from "./request-plane/call-home-client.js";
import { InProcessClient, InProcessServer, inProcessRegistryOf } from "./request-plane/in-process.js";
import { openNatsClient } from "./request-plane/nats-carrier.js";
import { NatsRequestPlaneServer } from "./request-plane/nats-server.js";
import { PlaneClientMetrics } from "./request-plane/plane-client-metrics.js";
import type {
	ActiveRequest,
	EndpointHandler,
	EndpointObserver,
	OutgoingRequest,
	RequestOptions,
	RequestPlaneClient,
	RequestPlaneServer,
	ResponseSink,
} from "./request-plane/request-plane.js";
import { traceRequests } from "./request-plane/request-spans.js";
import { openTcpClient } from "./request-plane/tcp-client.js";
import { TcpRequestPlaneServer } from "./request-plane/tcp-server.js";
import {
	createEndpointObserver,
	createProcessWorkMetrics,
	type ProcessWorkMetrics,
} from "./request-plane/work-handler-metrics.js";
import { WorkPool } from "./request-plane/work-pool.js";

/** An item of the in-process plane counts as this many bytes against the limit of what may wait. */
const IN_PROCESS_ITEM_BYTES = 256;

/** A worker dials as soon as it has acknowledged; its dial, and one that was lost on the way, fit into this many. */
const CALL_HOME_CONNECT_TIMEOUTS = 3;

/**
 * The runtime of one process: discovery, request plane, metrics, logs, system server. Listeners are opened when they
 * are first needed: a frontend never listens for requests, a worker never for responses.
 */
export class DistributedRuntime {
	readonly config: RuntimeConfig;
	readonly log: Logger;
	/** Begins the spans of requests that come into the process. */
	readonly tracer: Tracer;
	readonly discovery: Discovery;
	/** The process' u64 id; every record of it carries that. */
	readonly instanceId: bigint;
	/** Metrics of the whole process; its page is what the system server shows. */
	readonly metrics: MetricsRegistry;
	readonly health: Health;
	/** Publishes and receives events; opens sockets when first used. */
	readonly events: EventPlane;
	readonly #telemetry: Telemetry;
	readonly #memStore: MemStore | undefined;
	readonly #abort = new AbortController();
	readonly #namespaces: NamespaceTree;
	readonly #served = new Set<EndpointServer>();
	readonly #clients = new Set<DiscoveredEndpointClient>();
	readonly #observers = new Map<Endpoint, EndpointObserver>();
	#workMetrics: ProcessWorkMetrics | undefined;
	#admission: Admission | undefined;
	#pool: WorkPool | undefined;
	#server: Promise<RequestPlaneServer> | undefined;
	#client: Promise<RequestPlaneClient> | undefined;
	#clientMetrics: PlaneClientMetrics | undefined;
	#nats: Promise<NatsConnection> | undefined;
	#tls: TcpTls | undefined;
	#systemServer: SystemServer | undefined;
	#shutdown: Promise<void> | undefined;

	private constructor(
		config: RuntimeConfig,
		log: Logger,
		telemetry: Telemetry,
		discovery: Discovery,
		memStore: MemStore | undefined,
	) {
		this.config = config;
		this.log = log;
		this.#telemetry = telemetry;
		this.tracer = telemetry.tracer;
		this.discovery = discovery;
		this.instanceId = discovery.instanceId;
		this.#memStore = memStore;
		this.metrics = createMetricsRegistry(
			{ prefix: METRIC_PREFIXES.component, labels: { [LABELS.workerId]: idHex(discovery.instanceId) } },
			(error) => log.error("a metrics callback failed", { error }),
		);
		this.health = createHealth(config.startsReady, config.healthEndpoints);
		this.events = createEventPlane({
			settings: config.events,
			discovery,
			world: memStore,
			nats: () => this.natsConnection(),
			metrics: this.metrics,
			log: log.child("dynamo_runtime::transports::event_plane"),
		});
		const host: EndpointHost = {
			serve: (endpoint, handler, options) => this.#serve(endpoint, handler, options),
			client: (endpoint) => this.#connect(endpoint),
		};
		this.#namespaces = new NamespaceTree(host, this.metrics);
		const started = performance.now();
		const uptime = openGauge(this.metrics, METRICS.component.uptimeSeconds);
		this.metrics.addProcessMetrics();
		this.metrics.addUpdateCallback(() => uptime.set((performance.now() - started) / 1000));
	}

	/**
	 * @param config what is not given is read from the environment.
	 * @param signal gives up waiting for a discovery store that is not there yet.
	 * @throws DynamoError `InvalidArgument` for bad settings, `Unavailable` when discovery or the system port cannot
	 * be opened.
	 */
	static async create(config: Partial<RuntimeConfig> = {}, signal?: AbortSignal): Promise<DistributedRuntime> {
		const full: RuntimeConfig = Object.freeze(runtimeConfigFromEnv(process.env, config));
		const relay: LogRelay = {};
		const log = createLogger(full.log, "dynamo_runtime", undefined, relay);
		const telemetryLog = log.child("dynamo_runtime::logging");
		const telemetry = await Telemetry.start(full.telemetry, full.log, telemetryLog, relay, full.spanSink);
		try {
			return await DistributedRuntime.#open(full, log, telemetry, signal);
		} catch (error) {
			await telemetry.shutdown();
			throw error;
		}
	}

	static async #open(
		full: RuntimeConfig,
		log: Logger,
		telemetry: Telemetry,
		signal: AbortSignal | undefined,
	): Promise<DistributedRuntime> {
		const memStore = full.discoveryBackend === "mem" ? (full.memStore ?? sharedMemStore()) : undefined;
		const discoveryLog = log.child("dynamo_runtime::discovery");
		const discovery = await openDiscovery(full, discoveryLog, memStore ?? sharedMemStore(), signal);
		let runtime: DistributedRuntime;
		try {
			runtime = new DistributedRuntime(full, log, telemetry, discovery, memStore);
			await telemetry.exportMetrics(full.telemetry, runtime.metrics, log.child("dynamo_runtime::metrics"));
			await runtime.#startSystemServer();
		} catch (error) {
			await discovery.close();
			throw error;
		}
		return runtime;
	}

	/** The system server; undefined when its port is -1. */
	get systemServer(): SystemServer | undefined {
		return this.#systemServer;
	}

	/** Aborted when shutdown begins. */
	get signal(): AbortSignal {
		return this.#abort.signal;
	}

	/**
	 * The process' connection to NATS, opened when it is first asked for and closed by {@link shutdown}.
	 * @throws DynamoError `InvalidArgument` for bad settings, `Unavailable` when no server is reached in time.
	 */
	natsConnection(): Promise<NatsConnection> {
		this.#nats ??= NatsConnection.open(
			this.config.nats,
			this.log.child("dynamo_runtime::transports::nats"),
			this.#abort.signal,
		).catch((error) => {
			this.#nats = undefined;
			throw error;
		});
		return this.#nats;
	}

	/** @throws DynamoError `InvalidArgument` for a bad name. */
	namespace(name: string): Namespace {
		return this.#namespaces.namespace(name);
	}

	/**
	 * Opens now, and not with the first client, what requests are sent from: a port that is taken is told at the start.
	 * @throws DynamoError `Unavailable`.
	 */
	async openClient(): Promise<void> {
		this.#refuseAfterShutdown();
		await this.#requestClient();
	}

	/**
	 * Sends one request to one instance whose record is known from elsewhere than an endpoint's discovery (an EventSource
	 * names one). Failures are delivered to the sink.
	 * @throws DynamoError `Unavailable` when this process cannot send at all.
	 */
	async send(
		instance: EndpointRecord,
		request: OutgoingRequest,
		sink: ResponseSink,
		options?: RequestOptions,
	): Promise<ActiveRequest> {
		this.#refuseAfterShutdown();
		return (await this.#requestClient()).send(instance, request, sink, options);
	}

	/**
	 * Leaves in order: not ready; records gone from discovery; requests still taken for the grace time; then new ones
	 * refused and those under way finished, as long as the time limit allows; then connections and listeners closed.
	 * Idempotent.
	 */
	shutdown(): Promise<void> {
		this.#shutdown ??= this.#leave();
		return this.#shutdown;
	}

	async #leave(): Promise<void> {
		const { log, config } = this;
		this.#abort.abort();
		this.health.withdraw();
		const served = [...this.#served];
		const wasVisible = served.some((endpoint) => endpoint.registered);
		await Promise.all(served.map((endpoint) => endpoint.unregister().catch(() => {})));
		await this.discovery.deleteOwn();
		// Within one process the news is instant.
		if (wasVisible && this.#memStore === undefined && config.shutdownGraceMs > 0) {
			log.info("left discovery; requests are still taken for the grace time", { grace_ms: config.shutdownGraceMs });
			await new Promise((resolve) => setTimeout(resolve, config.shutdownGraceMs));
		}
		const drained = await Promise.all(served.map((endpoint) => endpoint.drain(config.shutdownTimeoutMs)));
		if (drained.includes(false)) {
			log.warn("requests were still under way at the end of the shutdown time; they are cut off", {
				inflight: served.reduce((sum, endpoint) => sum + endpoint.inflight, 0),
				timeout_ms: config.shutdownTimeoutMs,
			});
		}
		for (const endpoint of served) await endpoint.stop();
		for (const client of [...this.#clients]) client.close();
		await this.events.close();
		await (await this.#client?.catch(() => undefined))?.close();
		await (await this.#server?.catch(() => undefined))?.close();
		await (await this.#nats?.catch(() => undefined))?.close();
		await this.discovery.close();
		await this.#systemServer?.close();
		await this.#telemetry.shutdown();
	}

	async #startSystemServer(): Promise<void> {
		const { config } = this;
		if (config.systemPort < 0) return;
		this.#systemServer = await startSystemServer({
			host: config.systemHost,
			port: config.systemPort,
			healthPath: config.systemHealthPath,
			livePath: config.systemLivePath,
			health: this.health,
			metrics: this.metrics,
			log: this.log.child("dynamo_runtime::system_status_server"),
		});
		this.log.info("system server listening", { address: this.#systemServer.url });
	}

	async #serve(endpoint: Endpoint, handler: EndpointHandler, options: ServeOptions): Promise<ServedEndpoint> {
		this.#refuseAfterShutdown();
		const server = await this.#requestServer();
		this.#refuseAfterShutdown();
		const path = endpointPath(this.instanceId, endpoint.id);
		const served = new EndpointServer(
			{
				endpoint,
				config: this.config,
				discovery: this.discovery,
				server,
				health: this.health,
				observer: traceRequests(this.#observer(endpoint, options.metricLabels), {
					endpoint: endpoint.id,
					instanceId: this.instanceId,
					tracer: this.tracer,
					log: this.log,
				}),
				admission: this.#admissionOfEngine(),
				pool: this.#requestPool(),
				log: this.log.child("dynamo_runtime::component::endpoint", { path }),
				onStop: (stopped) => this.#served.delete(stopped),
			},
			handler,
			options,
		);
		this.#served.add(served);
		if (options.register !== false) {
			try {
				await served.register();
			} catch (error) {
				await served.stop();
				throw error;
			}
		}
		return served;
	}

	async #connect(endpoint: Endpoint): Promise<EndpointClient> {
		this.#refuseAfterShutdown();
		const plane = await this.#requestClient();
		const client = await DiscoveredEndpointClient.open({
			endpoint,
			discovery: this.discovery,
			plane,
			inhibitedDurationMs: this.config.inhibitedDurationMs,
			log: this.log.child("dynamo_runtime::component::client"),
			onClose: (closed) => this.#clients.delete(closed),
		});
		this.#clients.add(client);
		return client;
	}

	/** One for all endpoints of the process: they share its engine. */
	#admissionOfEngine(): Admission {
		const { engineRequestLimit, requestQueueLimit } = this.config;
		this.#admission ??= new Admission(engineRequestLimit, requestQueueLimit, this.#processMetrics("admission"));
		return this.#admission;
	}

	#requestPool(): WorkPool {
		const { workerPoolSize, workQueueSize } = this.config;
		this.#pool ??= new WorkPool(workerPoolSize, workQueueSize, this.#processMetrics("workHandler"));
		return this.#pool;
	}

	/** The registry of families that count for the process as a whole. */
	#processMetrics(group: keyof typeof METRIC_PREFIXES): MetricsRegistry {
		return this.metrics.level({ prefix: METRIC_PREFIXES[group], labels: null });
	}

	#refuseAfterShutdown(): void {
		if (this.#abort.signal.aborted) throw new DynamoError("Unavailable", "the runtime is shutting down");
	}

	/** Metrics of an endpoint outlive its server, so that serving it again goes on counting. */
	#observer(endpoint: Endpoint, labels: ServeOptions["metricLabels"]): EndpointObserver {
		let observer = this.#observers.get(endpoint);
		if (observer === undefined) {
			this.#workMetrics ??= createProcessWorkMetrics(this.#processMetrics("workHandler"));
			observer = createEndpointObserver(endpoint.metrics, this.#workMetrics, labels);
			this.#observers.set(endpoint, observer);
		}
		return observer;
	}

	#requestServer(): Promise<RequestPlaneServer> {
		// A taken port may be free at the next try.
		this.#server ??= this.#openServer().catch((error) => {
			this.#server = undefined;
			throw error;
		});
		return this.#server;
	}

	#requestClient(): Promise<RequestPlaneClient> {
		this.#client ??= this.#openClient().catch((error) => {
			this.#client = undefined;
			throw error;
		});
		return this.#client;
	}

	async #openServer(): Promise<RequestPlaneServer> {
		const { config } = this;
		if (this.#memStore !== undefined) return new InProcessServer(inProcessRegistryOf(this.#memStore));
		const tls = this.tcpTls();
		const options = {
			connectTimeoutMs: config.tcpConnectTimeoutMs,
			maxBufferedResponseBytes: config.maxBufferedResponseBytes,
			clientTls: tls.client,
			log: this.log.child("dynamo_runtime::request_plane::server"),
		};
		if (config.requestPlane === "nats") {
			return new NatsRequestPlaneServer({ ...options, connection: await this.natsConnection() });
		}
		return await TcpRequestPlaneServer.listen({
			...options,
			host: config.tcpRpcHost,
			port: config.tcpRpcPort,
			listenBacklog: config.tcpListenBacklog,
			maxMessageBytes: config.tcpMaxMessageBytes,
			serverTls: tls.server,
		});
	}

	async #openClient(): Promise<RequestPlaneClient> {
		const { config } = this;
		const log = this.log.child("dynamo_runtime::request_plane::client");
		const { firstResponseTimeoutMs, idleTimeoutMs } = config;
		this.#clientMetrics ??= new PlaneClientMetrics(
			this.#processMetrics("requestPlane"),
			this.#processMetrics("transport"),
		);
		const metrics = this.#clientMetrics;
		if (this.#memStore !== undefined) {
			return new InProcessClient(inProcessRegistryOf(this.#memStore), {
				firstResponseTimeoutMs,
				idleTimeoutMs,
				maxWaitingItems: Math.ceil(config.maxBufferedResponseBytes / IN_PROCESS_ITEM_BYTES),
				metrics,
				log,
			});
		}
		const tls = this.tcpTls();
		const options: CallHomeOptions = {
			responseHost: config.tcpResponseHost,
			responsePort: config.tcpResponsePort,
			listenBacklog: config.tcpListenBacklog,
			callHomeTimeoutMs: CALL_HOME_CONNECT_TIMEOUTS * config.tcpConnectTimeoutMs,
			firstResponseTimeoutMs,
			idleTimeoutMs,
			maxMessageBytes: config.tcpMaxMessageBytes,
			serverTls: tls.server,
			metrics,
			log,
		};
		if (config.requestPlane === "nats") {
			return await openNatsClient({
				...options,
				callHomeTimeoutMs: options.callHomeTimeoutMs + config.natsRequestTimeoutMs,
				connection: await this.natsConnection(),
				ackTimeoutMs: config.natsRequestTimeoutMs,
			});
		}
		return await openTcpClient({
			...options,
			connectTimeoutMs: config.tcpConnectTimeoutMs,
			ackTimeoutMs: config.tcpRequestTimeoutMs,
			poolSize: config.tcpPoolSize,
			poolIdleMs: config.tcpPoolIdleMs,
			clientTls: tls.client,
		});
	}

	/**
	 * Certificates of the TCP listeners and connections between processes.
	 * @throws DynamoError `InvalidArgument` that names the variable at fault.
	 */
	tcpTls(): TcpTls {
		this.#tls ??= loadTcpTls(this.config.tcpTls, this.log.child("dynamo_runtime::tls_utils"));
		return this.#tls;
	}
}
