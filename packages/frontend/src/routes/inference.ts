// SPDX-License-Identifier: Apache-2.0
import { randomUUID } from "node:crypto";
import type { IncomingMessage, ServerResponse } from "node:http";
import {
	type ChatCompletionRequest,
	type CompletionRequest,
	DynamoError,
	type EndpointRecord,
	HttpError,
	isJsonObject,
	type ModelType,
	parseChatCompletionRequest,
	parseCompletionRequest,
	parseLenientJson,
} from "@dynamo-ts/protocols/internal";
import type { FastifyInstance } from "fastify";
import { sendEmpty, sendFailure } from "../answers.js";
import { ChatChunkFormat, type ChunkFormat, CompletionChunkFormat } from "../chunk-format.js";
import type { DispatchOptions } from "../dispatch.js";
import type { FrontendState } from "../frontend-state.js";
import { Generation } from "../generation.js";
import type { Failure } from "../http-errors.js";
import { nvextReport } from "../nvext-report.js";
import { Preprocessor } from "../preprocessor.js";
import { ClientGoneError, readBody } from "../request-body.js";
import { type ApiEndpoint, RequestTracker, UNKNOWN_MODEL } from "../request-tracker.js";
import { type RoutingHeaders, routingHeaders } from "../routing-hints.js";
import { TextPassthrough } from "../text-passthrough.js";
import type { WorkerSet } from "../worker-set.js";
import { modelNotFound } from "./models.js";

type Request = ChatCompletionRequest | CompletionRequest;

interface Api {
	readonly kind: "chat" | "completions";
	readonly endpoint: ApiEndpoint;
	readonly type: ModelType;
	readonly path: string;
}

/** With or without hyphens, in braces, as a URN: what Rust's parser takes. */
const UUID =
	/^(urn:uuid:)?[0-9a-f]{8}(-?)[0-9a-f]{4}\2[0-9a-f]{4}\2[0-9a-f]{4}\2[0-9a-f]{12}$|^\{[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\}$/i;
/** Request headers that travel on to workers. */
const PASSED_HEADERS = ["x-request-id", "traceparent", "tracestate"] as const;

/** `/v1/chat/completions` and `/v1/completions`. */
export function addInferenceRoutes(app: FastifyInstance, state: FrontendState): void {
	const { paths } = state.config;
	const apis: Api[] = [
		{ kind: "chat", endpoint: "chat_completions", type: "Chat", path: paths.chat },
		{ kind: "completions", endpoint: "completions", type: "Completions", path: paths.completions },
	];
	for (const api of apis) {
		app.post(api.path, (request, reply) => {
			reply.hijack();
			const { raw: response } = reply;
			// The route is switched off while no model of its kind is there, whatever the body says.
			if (!state.manager.hasType(api.type)) {
				request.raw.resume();
				sendEmpty(response, 404);
				return;
			}
			state.enter(response);
			handle(state, api, request.raw, response).catch((error: unknown) => {
				state.log.error("request handler failed", { error });
				sendFailure(response, state.failureOf(error));
			});
		});
	}
}

/** A request that never reaches a worker gets its answer here; every outcome is counted once. */
async function handle(
	state: FrontendState,
	api: Api,
	incoming: IncomingMessage,
	response: ServerResponse,
): Promise<void> {
	const receivedAt = performance.now();
	let body: Buffer;
	let request: Request | undefined;
	let refusal: HttpError | undefined;
	try {
		body = await readBody(incoming, response, state.config.bodyLimitBytes);
		request = parse(state, api, body);
	} catch (error) {
		if (error instanceof ClientGoneError) return;
		if (!(error instanceof HttpError) || !isAboutFields(error)) {
			const failure = state.failureOf(error);
			state.countFailure(failure);
			sendFailure(response, failure);
			return;
		}
		refusal = error;
		body ??= Buffer.alloc(0);
	}
	const name = request?.model ?? modelNameOf(body);
	const model = state.manager.find(name);
	const requestId = requestIdOf(state, incoming);
	const startTracking = (): RequestTracker =>
		new RequestTracker(
			{
				endpoint: api.endpoint,
				model: model === undefined ? UNKNOWN_MODEL : name,
				stream: (request ?? (refusal === undefined ? {} : lenientBody(body))).stream === true,
				requestId,
				xRequestId: header(incoming, "x-request-id"),
				uri: incoming.url ?? api.path,
				receivedAt,
			},
			state.metrics,
			state.log,
		);
	const fail = (tracker: RequestTracker, failure: Failure): void => {
		sendFailure(response, failure);
		tracker.finish({ kind: "failure", failure });
	};
	if (request === undefined) {
		fail(startTracking(), state.failureOf(refusal));
		return;
	}
	if (model === undefined || model.serving(api.type).length === 0) {
		if (model !== undefined && !model.committed) {
			refuseNotReady(state, response, name);
			return;
		}
		fail(startTracking(), modelNotFound(state, name));
		return;
	}
	let set = model.pick(api.type);
	if (set === undefined) {
		refuseNotReady(state, response, name);
		return;
	}
	const tracker = startTracking();
	try {
		const routing = state.config.disableNvext ? {} : routingHeaders(incoming.headers);
		const pinned = pinnedWorker(routing, request, model.serving(api.type));
		if (pinned !== undefined) set = pinned.set;
		await answer(state, api, incoming, response, request, body, set, routing, pinned?.instance, requestId, tracker);
	} catch (error) {
		if (response.destroyed) tracker.finish({ kind: "disconnected" });
		else fail(tracker, state.failureOf(error));
	}
}

async function answer(
	state: FrontendState,
	api: Api,
	incoming: IncomingMessage,
	response: ServerResponse,
	request: Request,
	body: Buffer,
	set: WorkerSet,
	routing: RoutingHeaders,
	pinned: EndpointRecord | undefined,
	requestId: string,
	tracker: RequestTracker,
): Promise<void> {
	const { config, metrics } = state;
	const silence = config.backendStreamTimeoutMs;
	const dispatch: DispatchOptions = {
		...(silence === undefined ? {} : { firstResponseTimeoutMs: silence, idleTimeoutMs: silence }),
		...(pinned === undefined ? {} : { pinned }),
		migrations: metrics.migrationObserver(request.model),
	};
	const stream = request.stream === true;
	const headers = workerHeaders(incoming);
	if (set.materials === undefined) {
		const plan = {
			requestId,
			kind: api.kind,
			stream,
			set,
			headers,
			dispatch,
			keepAliveMs: config.sseKeepAliveIntervalMs,
		};
		new TextPassthrough({ ...plan, body: parseLenientJson(body.toString("utf8")) }, response, tracker, state).start();
		return;
	}
	tracker.enterStage("preprocess");
	const preprocessor = new Preprocessor(set, set.materials, metrics);
	const prepared =
		api.kind === "chat"
			? await preprocessor.chat(request as ChatCompletionRequest, routing)
			: await preprocessor.completion(request as CompletionRequest, routing);
	if (response.destroyed) throw new ClientGoneError("the client left before its request was sent to a worker");
	const identity = { requestId, model: request.model, created: Math.floor(Date.now() / 1000) };
	const format: ChunkFormat =
		api.kind === "chat"
			? new ChatChunkFormat(identity)
			: new CompletionChunkFormat(identity, prepared.prompts.length > 1 ? (request.n ?? 1) : undefined);
	const includeUsage = request.stream_options?.include_usage === true || config.forceIncludeUsage;
	const generation = new Generation(
		{
			requestId,
			stream,
			set,
			prompts: prepared.prompts,
			choices: request.n ?? 1,
			rules: prepared.rules,
			format,
			usage: {
				final: includeUsage,
				continuous: includeUsage && request.stream_options?.continuous_usage_stats === true,
			},
			annotations: annotations(request, requestId, prepared.prompts[0]?.body.token_ids, prepared.formattedPrompt),
			report: nvextReport(request.nvext?.extra_fields),
			headers,
			dispatch,
			migration: { limit: config.migrationLimit, maxSeqLen: config.migrationMaxSeqLen },
			keepAliveMs: config.sseKeepAliveIntervalMs,
			errorPeekMs: config.preCommitErrorPeekMs,
		},
		response,
		tracker,
		state,
	);
	generation.start();
}

/** False for a body that could not be read or does not have the types: such requests are not counted as requests. */
function isAboutFields(error: HttpError): boolean {
	return error.status !== 413 && error.status !== 415 && !error.message.startsWith("Failed to ");
}

function parse(state: FrontendState, api: Api, body: Buffer): Request {
	const { ignoreUnsupportedFields, disableNvext } = state.config;
	const options = { ignoreUnsupportedFields, disableNvext };
	return api.kind === "chat" ? parseChatCompletionRequest(body, options) : parseCompletionRequest(body, options);
}

function lenientBody(body: Buffer): Record<string, unknown> {
	try {
		const value = parseLenientJson(body.toString("utf8"));
		return isJsonObject(value) ? value : {};
	} catch {
		return {};
	}
}

function modelNameOf(body: Buffer): string {
	const { model } = lenientBody(body);
	return typeof model === "string" ? model : "";
}

function header(incoming: IncomingMessage, name: string): string | undefined {
	const value = incoming.headers[name];
	return Array.isArray(value) ? value[0] : value;
}

/** A fresh UUID, unless the client gave one in the deprecated header. */
function requestIdOf(state: FrontendState, incoming: IncomingMessage): string {
	const given = header(incoming, "x-dynamo-request-id");
	if (given === undefined) return randomUUID();
	state.log.warn("the header x-dynamo-request-id is deprecated: use x-request-id");
	return UUID.test(given) ? given : randomUUID();
}

function workerHeaders(incoming: IncomingMessage): Record<string, string> {
	const headers: Record<string, string> = {};
	for (const name of PASSED_HEADERS) {
		const value = header(incoming, name);
		if (value !== undefined) headers[name] = value;
	}
	return headers;
}

/**
 * The worker that the client asked for, by header or `nvext`.
 * @throws DynamoError `InvalidArgument` for a worker that is not there.
 */
function pinnedWorker(
	routing: RoutingHeaders,
	request: Request,
	sets: readonly WorkerSet[],
): { set: WorkerSet; instance: EndpointRecord } | undefined {
	const { nvext } = request;
	const given = routing.workerId ?? nvext?.backend_instance_id ?? nvext?.decode_worker_id ?? undefined;
	if (given === undefined) {
		if ((routing.dpRank ?? nvext?.dp_rank ?? undefined) === undefined) return undefined;
		throw new DynamoError("InvalidArgument", "a dp_rank says nothing without the worker that it belongs to");
	}
	const id = BigInt(given);
	for (const set of sets) {
		const instance = set.member(id);
		if (instance !== undefined) return { set, instance };
	}
	throw new DynamoError("InvalidArgument", `there is no worker ${given} of this model`);
}

/** Annotation events that the client asked for and that we have, in Dynamo's order. */
function annotations(
	request: Request,
	requestId: string,
	tokenIds: readonly number[] | undefined,
	formattedPrompt: string | undefined,
): (readonly [string, string])[] {
	const wanted = new Set(request.nvext?.annotations ?? []);
	const events: (readonly [string, string])[] = [];
	if (wanted.has("request_id")) events.push(["request_id", requestId]);
	if (wanted.has("token_ids")) events.push(["token_ids", JSON.stringify(tokenIds ?? [])]);
	if (wanted.has("formatted_prompt") && formattedPrompt !== undefined) {
		events.push(["formatted_prompt", formattedPrompt]);
	}
	return events;
}

/** Not counted as a request: nothing of it was begun. */
function refuseNotReady(state: FrontendState, response: ServerResponse, name: string): void {
	const failure = state.failureOf(
		new HttpError(
			503,
			`Model \`${name}\` is not ready to serve requests yet. The deployment may still be starting up or is not ` +
				"fully provisioned. Please retry shortly.",
		),
	);
	state.countFailure(failure);
	sendFailure(response, failure);
}
