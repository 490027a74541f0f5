// SPDX-License-Identifier: Apache-2.0
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
	type RoutingHints,
} from "@dynamo-ts/protocols/internal";
import type { RouteTrace } from "@dynamo-ts/router/internal";
import type { Span } from "@dynamo-ts/runtime";
import type { FastifyInstance } from "fastify";
import { sendEmpty, sendFailure } from "../answers.js";
import { ChatChunkFormat, type ChunkFormat, CompletionChunkFormat } from "../chunk-format.js";
import type { DispatchOptions } from "../dispatch-options.js";
import type { FrontendState } from "../frontend-state.js";
import { ContentAttribute, setRequestAttributes } from "../gen-ai-attributes.js";
import { Generation } from "../generation.js";
import type { Failure } from "../http-errors.js";
import type { PromptRequest } from "../leg.js";
import { nvextReport } from "../nvext-report.js";
import { Preprocessor } from "../preprocessor.js";
import { ClientGoneError, readBody } from "../request-body.js";
import { type ApiEndpoint, type MediaParts, NO_MEDIA, RequestTracker, UNKNOWN_MODEL } from "../request-tracker.js";
import { type RoutingHeaders, routingHeaders } from "../routing-hints.js";
import { SseWriter } from "../sse.js";
import { TextPassthrough } from "../text-passthrough.js";
import { isWorkerQuery, queryAnswer, queryWorkers } from "../worker-query.js";
import type { WorkerSet } from "../worker-set.js";
import { modelNotFound } from "./models.js";

type Request = ChatCompletionRequest | CompletionRequest;

interface Api {
	readonly kind: "chat" | "completions";
	readonly endpoint: ApiEndpoint;
	readonly type: ModelType;
	readonly path: string;
}

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
				state.log.error("request handler failed", { error }, state.exchangeOf(request.raw, response).span);
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
	const exchange = state.exchangeOf(incoming, response);
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
	const startTracking = (): RequestTracker =>
		new RequestTracker(
			{
				endpoint: api.endpoint,
				model: model === undefined ? UNKNOWN_MODEL : name,
				stream: (request ?? (refusal === undefined ? {} : lenientBody(body))).stream === true,
				exchange,
			},
			state.metrics,
			state.requestLog,
		);
	const fail = (tracker: RequestTracker, failure: Failure): void => {
		tracker.finish({ kind: "failure", failure });
		sendFailure(response, failure);
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
		const pinned = pinnedWorker(routing, request, model.callable(api.type));
		if (pinned !== undefined) set = pinned.set;
		if (routing.sessionId !== undefined) set.router.affinity?.check(routing.sessionId);
		await answer(state, api, incoming, response, request, body, set, routing, pinned?.instance, tracker);
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
	tracker: RequestTracker,
): Promise<void> {
	const { config, metrics } = state;
	const silence = config.backendStreamTimeoutMs;
	const { requestId } = tracker.request.exchange;
	const dispatch: DispatchOptions = {
		...(silence === undefined ? {} : { firstResponseTimeoutMs: silence, idleTimeoutMs: silence }),
		...(pinned === undefined ? {} : { pinned }),
		...(routing.sessionId === undefined ? {} : { sessionId: routing.sessionId }),
		...(routing.policyClass === undefined ? {} : { policyClass: routing.policyClass }),
		migrations: metrics.migrationObserver(request.model),
		...(tracker.span === undefined
			? {}
			: { trace: routeTrace(state, set, tracker.span, requestId, request.stream === true) }),
	};
	const { span: http } = tracker.request.exchange;
	setRequestAttributes(http, request, incoming.headers.host, config.traceContent);
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
	// As in Dynamo, completions are not counted in this stage.
	if ("messages" in request) {
		tracker.media = countMedia(request);
		tracker.enterStage("preprocess");
	}
	const preprocessor = new Preprocessor(set, set.materials, metrics);
	const prepared =
		api.kind === "chat"
			? await preprocessor.chat(request as ChatCompletionRequest, routing)
			: await preprocessor.completion(request as CompletionRequest, routing);
	if (response.destroyed) throw new ClientGoneError("the client left before its request was sent to a worker");
	checkPinnedPrefill(prepared.prompts[0]?.body.routing, set);
	const identity = { requestId, model: request.model, created: Math.floor(Date.now() / 1000) };
	if (isWorkerQuery(request.nvext?.annotations)) {
		const [first] = prepared.prompts as [PromptRequest];
		const workers = await queryWorkers(set, first.body, pinned);
		const json = queryAnswer(api.kind, stream, identity, workers, first.body.token_ids);
		if (stream) {
			const writer = new SseWriter(response, 0, { onBlocked: () => {}, onDrain: () => {} });
			writer.queue(`data: ${json}\n\n`);
			writer.end();
		} else state.sendJson(response, 200, json);
		tracker.finish({ kind: "success" });
		return;
	}
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
			prefill: {
				enforce: config.enforceDisagg,
				conditional: set.wish === undefined ? config.conditionalDisagg : set.wish.conditional,
				log: state.log,
			},
			migration: { limit: config.migrationLimit, maxSeqLen: config.migrationMaxSeqLen },
			keepAliveMs: config.sseKeepAliveIntervalMs,
			content: config.traceContent && http?.recording === true ? new ContentAttribute(http) : undefined,
			errorPeekMs: config.preCommitErrorPeekMs,
		},
		response,
		tracker,
		state,
	);
	generation.start();
}

function routeTrace(
	state: FrontendState,
	set: WorkerSet,
	parent: Span,
	requestId: string,
	stream: boolean,
): RouteTrace {
	const cancelSignal = stream ? "stream_drop" : "kill";
	const phase = set.takesPrefill ? "Decode" : "Aggregated";
	return { parent, phase, logs: state.routeLogs, requestId, cancelSignal };
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

/** What travels on to workers, beside what each attempt adds. */
function workerHeaders(incoming: IncomingMessage): Record<string, string> {
	const { tracestate } = incoming.headers;
	return typeof tracestate === "string" ? { tracestate } : {};
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

/**
 * The prefill worker that the client asked for is checked before anything is sent.
 * @throws DynamoError `InvalidArgument` for a worker that is not there.
 */
function checkPinnedPrefill(routing: RoutingHints | undefined, set: WorkerSet): void {
	const id = routing?.prefill_worker_id;
	if (id === undefined || !set.takesPrefill || set.group.prefillSetOf(id) !== undefined) return;
	throw new DynamoError("InvalidArgument", `there is no prefill worker ${id} of this model`);
}

/** Parts of the messages that are not text. */
function countMedia({ messages }: ChatCompletionRequest): MediaParts {
	let parts = NO_MEDIA;
	for (const { content } of messages) {
		if (!Array.isArray(content)) continue;
		for (const { type } of content as readonly { readonly type?: string }[]) {
			if (type === "image_url") parts = { ...parts, images: parts.images + 1 };
			else if (type === "audio_url" || type === "input_audio") parts = { ...parts, audio: parts.audio + 1 };
			else if (type === "video_url") parts = { ...parts, videos: parts.videos + 1 };
		}
	}
	return parts;
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
