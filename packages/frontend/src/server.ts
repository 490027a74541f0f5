// SPDX-License-Identifier: Apache-2.0
import { type IncomingMessage, type Server, type ServerResponse, STATUS_CODES } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import { DynamoError, HttpError } from "@dynamo-ts/protocols/internal";
import { RouterMetrics } from "@dynamo-ts/router";
import type { DistributedRuntime } from "@dynamo-ts/runtime";
import Fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from "fastify";
import { sendEmpty, sendFailure } from "./answers.js";
import { type FrontendConfig, frontendConfigFromEnv } from "./config.js";
import { FrontendMetrics, metricsPrefix } from "./frontend-metrics.js";
import { FrontendState } from "./frontend-state.js";
import { ModelFiles } from "./model-files.js";
import { ModelManager } from "./model-manager.js";
import { ModelWatcher } from "./model-watcher.js";
import { unsupportedMediaType } from "./request-body.js";
import { addBusyThresholdRoutes } from "./routes/busy-threshold.js";
import { addDashboardRoutes, isDashboard } from "./routes/dashboard.js";
import { addHealthRoutes, VERSION_PATHS } from "./routes/health.js";
import { addInferenceRoutes } from "./routes/inference.js";
import { addModelRoutes, modelNotFound } from "./routes/models.js";

/** Routes that Dynamo has for kinds of models that this frontend does not serve: always switched off. */
const DISABLED_ROUTES: readonly (readonly ["GET" | "POST", string])[] = [
	["POST", "/v1/classify"],
	["POST", "/v1/pooling"],
	["POST", "/v1/rerank"],
	["POST", "/v1/images/generations"],
	["POST", "/v1/images/edits"],
	["POST", "/v1/videos"],
	["POST", "/v1/videos/stream"],
	["POST", "/v1/audio/speech"],
	["GET", "/v1/realtime"],
];

/** Longest request line and headers; clients with many cookies come near 16 KiB, node's own limit. */
const MAX_HEADER_BYTES = 256 * 1024;

/** A running frontend. */
export interface Frontend {
	/** `http://host:port`, with the real port. */
	readonly address: string;
	readonly port: number;
	/** Inference requests whose answer is not complete. */
	readonly inflight: number;
	/** Names of the models that can be called now. */
	models(): string[];
	/** Resolves when a model can be called. @throws DynamoError `Unavailable` after `timeoutMs` milliseconds. */
	waitForModel(name: string, timeoutMs: number): Promise<void>;
	/**
	 * Leaves in order: new requests get 503 while those under way go on; when none is left, or after the graceful
	 * shutdown timeout, the listener closes; streams that still run are not cut. Resolves when the last one has ended.
	 */
	drain(): Promise<void>;
	/** Ends at once: cuts what is under way. Idempotent; can be called during {@link drain}. */
	close(): Promise<void>;
}

/**
 * Starts the HTTP server and the watching of models.
 * @param config overrides what the environment says.
 * @throws DynamoError `Unavailable` that names address, flag and variable when the port cannot be had.
 */
export async function startFrontend(
	runtime: DistributedRuntime,
	config: Partial<FrontendConfig> = {},
): Promise<Frontend> {
	const full: FrontendConfig = Object.freeze({ ...frontendConfigFromEnv(), ...config });
	const log = runtime.log.child("dynamo_llm::http::service");
	const prefix = metricsPrefix(full.metricsPrefix, (message) => log.warn(message));
	const metrics = new FrontendMetrics({
		prefix,
		buckets: full.buckets,
		migrationLimit: full.migrationLimit,
		nim: full.nimMetrics ? { python: full.nimPythonMetrics } : undefined,
		workersOf: (model) => manager.workersOf(model),
	});
	const manager: ModelManager = new ModelManager(metrics);
	const files = new ModelFiles({
		cacheDir: full.modelCacheDir,
		modelPath: full.modelPath,
		timeoutMs: full.fileTimeoutMs,
	});
	const watcher = new ModelWatcher(runtime, manager, files, {
		namespace: full.namespace,
		namespacePrefix: full.namespacePrefix,
		routerMode: full.routerMode,
		kvRouter: full.kvRouter,
		busy: full.busyThresholds,
		policyConfig: full.policyConfig,
		minInitialWorkers: full.minInitialWorkers,
		routerMetrics: new RouterMetrics(runtime, metrics.registry),
		sessionAffinity: full.sessionAffinity,
		onWorkerGone: (id) => metrics.forgetWorker(id),
	});
	const state = new FrontendState(runtime, full, metrics, manager, watcher, log);
	const app = buildApp(state);
	try {
		await listen(app, full);
		await watcher.start();
	} catch (error) {
		watcher.close();
		metrics.close();
		await app.close();
		throw error;
	}
	return new RunningFrontend(state, app);
}

function buildApp(state: FrontendState): FastifyInstance {
	const app = Fastify({
		logger: false,
		forceCloseConnections: true,
		// Time to receive a whole request; bodies may be large and lines slow.
		requestTimeout: 300_000,
		routerOptions: { maxParamLength: 4096 },
		frameworkErrors: (_error, request, reply) => notFound(state, request, reply),
		clientErrorHandler: answerUnreadable,
		http: { maxHeaderSize: MAX_HEADER_BYTES, requireHostHeader: false },
	});
	expectContinue(app.server);
	// Bodies are read by the routes: limits, types and error texts are Dynamo's.
	app.removeAllContentTypeParsers();
	app.addContentTypeParser("*", (_request, _payload, done) => done(null));
	app.addHook("onRequest", (request, reply, done) => {
		const { xRequestId } = state.begin(request.raw, reply.raw, isSystemRoute(state, request));
		if (xRequestId !== undefined) reply.raw.setHeader("x-request-id", xRequestId);
		if (state.stage === "ready" || isProbe(state, request)) {
			done();
			return;
		}
		reply.hijack();
		request.raw.resume();
		const failure = state.failureOf(new HttpError(503, "Service is not ready"));
		state.countFailure(failure);
		sendFailure(reply.raw, failure);
	});
	app.setNotFoundHandler((request, reply) => notFound(state, request, reply));
	app.setErrorHandler((error, request, reply) => {
		reply.hijack();
		request.raw.resume();
		// A content type that is none is told before the route has its say.
		const unread = (error as { statusCode?: number }).statusCode === 415;
		if (!unread) state.log.error("route failed", { error }, state.exchangeOf(request.raw, reply.raw).span);
		const failure = state.failureOf(unread ? unsupportedMediaType() : error);
		if (unread) state.countFailure(failure);
		sendFailure(reply.raw, failure);
	});
	if (state.config.dashboard) addDashboardRoutes(app, state);
	addHealthRoutes(app, state);
	addModelRoutes(app, state);
	addInferenceRoutes(app, state);
	addBusyThresholdRoutes(app, state);
	for (const [method, url] of DISABLED_ROUTES) {
		app.route({
			method,
			url,
			handler: (request, reply) => {
				reply.hijack();
				request.raw.resume();
				sendEmpty(reply.raw, 404);
			},
		});
	}
	return app;
}

/** What is no HTTP gets a status without a body, unless an answer is on its way on the same connection. */
function answerUnreadable(error: NodeJS.ErrnoException, socket: Socket): void {
	if (error.code === "ECONNRESET" || socket.destroyed) return;
	const { _httpMessage: answer } = socket as Socket & { _httpMessage?: ServerResponse | null };
	// More data behind a request that was to be the last: that request is answered, and then the connection closed.
	if (error.code === "HPE_CLOSED_CONNECTION" && answer) return;
	const status = error.code === "HPE_HEADER_OVERFLOW" ? 431 : 400;
	if (socket.writable && !answer?.headersSent) {
		socket.write(`HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n`);
	}
	socket.destroy();
}

/**
 * A client that waits for `100 Continue` gets it when its body is wanted, see {@link readBody}. Until then an answer
 * ends the connection: whether the body follows is not known. Any other expectation is ignored, as in Dynamo.
 */
function expectContinue(server: Server): void {
	server.on("checkContinue", (request: IncomingMessage, response: ServerResponse) => {
		response.shouldKeepAlive = false;
		server.emit("request", request, response);
	});
	server.on("checkExpectation", (request, response) => server.emit("request", request, response));
}

function pathOf(request: FastifyRequest): string {
	return (request.raw.url ?? "/").split("?", 1)[0] as string;
}

/** Asked by machines at every interval: such requests have no span of their own. */
function isSystemRoute(state: FrontendState, request: FastifyRequest): boolean {
	const { paths } = state.config;
	const path = pathOf(request);
	return (
		isProbe(state, request) ||
		isDashboard(path) ||
		path === paths.metrics ||
		VERSION_PATHS.includes(path) ||
		path === paths.models ||
		path.startsWith(`${paths.models}/`)
	);
}

function isProbe(state: FrontendState, request: FastifyRequest): boolean {
	const path = pathOf(request);
	return path === state.config.paths.health || path === state.config.paths.live;
}

/**
 * 405 for a path that exists with another method (404 while there is no model for it, yet with the method), 404 for one
 * that does not.
 */
function notFound(state: FrontendState, request: FastifyRequest, reply: FastifyReply): void {
	const path = pathOf(request);
	const method = request.raw.method ?? "GET";
	reply.hijack();
	request.raw.resume();
	const { paths } = state.config;
	const gets = [paths.models, paths.health, paths.live, paths.metrics, ...VERSION_PATHS];
	const isModel = path.startsWith(`${paths.models}/`) && path.length > paths.models.length + 1;
	const reads = method === "GET" || method === "HEAD";
	const disabled = DISABLED_ROUTES.find(([, url]) => url === path);
	if (path === paths.chat || path === paths.completions) {
		const enabled = state.manager.hasType(path === paths.chat ? "Chat" : "Completions");
		sendEmpty(reply.raw, enabled ? 405 : 404, { allow: "POST" });
	} else if (disabled !== undefined) {
		sendEmpty(reply.raw, 404, { allow: disabled[0] === "GET" ? "GET,HEAD" : disabled[0] });
	} else if (!reads && (gets.includes(path) || isModel || (state.config.dashboard && isDashboard(path)))) {
		sendEmpty(reply.raw, 405, { allow: "GET,HEAD" });
	} else if (isModel) {
		// An id that cannot be decoded is nobody's.
		sendFailure(reply.raw, modelNotFound(state, path.slice(paths.models.length + 1)));
	} else {
		const failure = state.failureOf(new HttpError(404, `Route not found: ${method} ${path}`));
		state.countFailure(failure);
		sendFailure(reply.raw, failure);
	}
}

async function listen(app: FastifyInstance, config: FrontendConfig): Promise<void> {
	try {
		await app.listen({ host: config.host, port: config.port, backlog: config.listenBacklog });
	} catch (error) {
		const { code, message } = error as NodeJS.ErrnoException;
		const where = `${config.host}:${config.port}`;
		const why =
			code === "EADDRINUSE" ? "the port is in use" : code === "EACCES" ? "the port needs more rights" : String(message);
		throw new DynamoError(
			"Unavailable",
			`cannot listen on ${where}: ${why}. Choose another port with --http-port or DYN_HTTP_PORT (0: any free one)`,
			{ cause: error },
		);
	}
}

class RunningFrontend implements Frontend {
	readonly address: string;
	readonly port: number;
	private readonly state: FrontendState;
	private readonly app: FastifyInstance;
	private draining: Promise<void> | undefined;
	private closing: Promise<void> | undefined;

	constructor(state: FrontendState, app: FastifyInstance) {
		this.state = state;
		this.app = app;
		const { port } = app.server.address() as AddressInfo;
		const { host } = state.config;
		this.port = port;
		this.address = `http://${host.includes(":") ? `[${host}]` : host}:${port}`;
		state.log.info("frontend listening", { address: this.address });
	}

	get inflight(): number {
		return this.state.inflightCount;
	}

	models(): string[] {
		return this.state.manager.ready().map(({ name }) => name);
	}

	waitForModel(name: string, timeoutMs: number): Promise<void> {
		return this.state.manager.waitForReady(name, timeoutMs);
	}

	drain(): Promise<void> {
		this.draining ??= this.leave();
		return this.draining;
	}

	close(): Promise<void> {
		this.closing ??= this.stop();
		return this.closing;
	}

	private async leave(): Promise<void> {
		const { state } = this;
		state.stage = "draining";
		state.log.info("frontend draining", { inflight: state.inflightCount });
		if (!(await within(state.idle(), state.config.gracefulShutdownTimeoutMs))) {
			state.log.warn("Timed out waiting for inflight inference requests to drain", { inflight: state.inflightCount });
		}
		state.stage = "stopping";
		this.app.server.close();
		this.app.server.closeIdleConnections();
		await state.idle();
		await this.close();
	}

	private async stop(): Promise<void> {
		const { state } = this;
		state.stage = "stopping";
		state.cutAll();
		state.watcher.close();
		state.metrics.close();
		await this.app.close();
	}
}

/** True when the promise settled in time. */
async function within(promise: Promise<void>, ms: number): Promise<boolean> {
	let timer: NodeJS.Timeout | undefined;
	const timeout = new Promise<false>((resolve) => {
		timer = setTimeout(() => resolve(false), ms);
	});
	const inTime = await Promise.race([promise.then(() => true as const), timeout]);
	clearTimeout(timer);
	return inTime;
}
