// SPDX-License-Identifier: Apache-2.0
// Puts an engine on the runtime: start, register, serve, and leave in an order in which no request gets lost.
import { type Engine, type EngineInfo, KvEventTap } from "@dynamo-ts/engine";
import {
	type EndpointId,
	LABELS,
	METRIC_PREFIXES,
	type ModelDeploymentCard,
	type ModelRecord,
} from "@dynamo-ts/protocols/internal";
import type { DistributedRuntime, EndpointHandler } from "@dynamo-ts/runtime";
import { buildCard, hostModelFiles } from "./card.js";
import type { Disaggregation } from "./disaggregation.js";
import { formatEndpointAddress } from "./endpoint-address.js";
import { registerEngineMetrics } from "./engine-metrics.js";
import { createGenerateHandler } from "./generate-handler.js";
import type { SamplingDefaults } from "./generate-request.js";
import type { KvEventsConfig } from "./kv-events/kv-events-config.js";
import { WorkerEvents } from "./kv-events/worker-events.js";
import { KvTransfer, type KvTransferConfig, kvTransferConfigFromEnv } from "./kv-transfer/kv-transfer.js";
import { type ModelFiles, readSamplingDefaults } from "./model-files.js";
import { checkNeighbours, ModelRegistration, tokensHealthCheck } from "./registration.js";
import { VllmMetrics } from "./vllm-metrics.js";
import { DEFAULT_COMPONENT, type WorkerRole } from "./worker-role.js";

export interface WorkerOptions {
	readonly engine: Engine;
	/** What `engine.start()` gave, when it was called already; absent: the worker calls it. */
	readonly engineStart?: Promise<EngineInfo> | undefined;
	readonly files: ModelFiles | Promise<ModelFiles>;
	/** The model's public name. */
	readonly modelName: string;
	/** Hub id or local path; part of what makes cards equal. */
	readonly sourcePath: string;
	/** Default aggregated. */
	readonly role?: WorkerRole | undefined;
	/** Default dyn://dynamo.backend.generate, of a prefill worker dyn://dynamo.prefill.generate. */
	readonly endpoint?: EndpointId | undefined;
	/** Used before those of generation_config.json, for requests that leave them out. */
	readonly samplingDefaults?: SamplingDefaults | undefined;
	/** Refuse requests without max_tokens. Default false. */
	readonly requireMaxTokens?: boolean | undefined;
	/** The context length that the card shows, in tokens; default: the engine's. */
	readonly cardContextLength?: number | undefined;
	/** End-of-text ids beside those that the engine knows. */
	readonly eosTokenIds?: readonly number[] | undefined;
	readonly toolCallParser?: string | undefined;
	readonly reasoningParser?: string | undefined;
	/**
	 * How prompts are handed over between prefill and decode workers; default: as without
	 * any variable of the environment.
	 */
	readonly kvTransfer?: KvTransferConfig | undefined;
	/** Where decode workers find out that a prompt is computed; part of the card of a prefill worker. */
	readonly meetingPoint?: { readonly host: string; readonly port: number } | undefined;
	/** How frontends are to route to it, as Dynamo writes that into the card; absent: as they like. */
	readonly routerConfig?: Readonly<Record<string, unknown>> | undefined;
	/** Put around the handler of requests; default: nothing. */
	readonly wrapHandler?: ((handler: EndpointHandler) => EndpointHandler) | undefined;
	/** What is told of the engine's cache; default: to routers, and of a decode worker's nothing, as Dynamo has it. */
	readonly kvEvents?: KvEventsConfig | undefined;
	/**
	 * The ear at the engine's cache, put there before `engineStart`; where that is absent the worker does it itself.
	 */
	readonly kvEventTap?: KvEventTap | undefined;
}

/** A worker that serves its model. */
export interface WorkerHandle {
	readonly info: EngineInfo;
	readonly card: ModelDeploymentCard;
	/** Requests being handled now. */
	readonly inflight: number;
	/** Resolves if the engine dies by itself; the worker has left discovery by then. */
	readonly failed: Promise<Error>;
	/**
	 * Leaves discovery, so that no new request comes, and waits for those under way.
	 * @param timeoutMs longest wait; default: the runtime's shutdown timeout.
	 * @returns false when some were still under way.
	 */
	drain(timeoutMs?: number): Promise<boolean>;
	/** Ends what is still under way and closes the engine. Idempotent. */
	close(): Promise<void>;
}

const TARGET = "dynamo_worker";
/** Longest wait, at the end, for the last frames to go out. */
const LAST_WORDS_MS = 1000;
/** Longest wait for decode workers to fetch what they were told of. */
const HANDED_OUT_MS = 2000;

/**
 * Starts the engine (unless it is started), registers the model and serves its `generate` endpoint. When the promise
 * resolves, frontends can find the worker.
 * @throws what starting the engine or reading the files throws; DynamoError `Conflict` when the endpoint belongs to
 * another model. The engine is closed then.
 */
export async function startWorker(runtime: DistributedRuntime, options: WorkerOptions): Promise<WorkerHandle> {
	const { engine } = options;
	try {
		const tap = options.kvEventTap ?? KvEventTap.attach(engine);
		const starting = options.engineStart ?? engine.start();
		const [info, files] = await Promise.all([starting, options.files]);
		return await serve(runtime, options, tap, info, files);
	} catch (error) {
		await engine.close();
		throw error;
	}
}

async function serve(
	runtime: DistributedRuntime,
	options: WorkerOptions,
	tap: KvEventTap | undefined,
	info: EngineInfo,
	files: ModelFiles,
): Promise<WorkerHandle> {
	const { engine } = options;
	const role = options.role ?? "aggregated";
	const id = options.endpoint ?? { namespace: "dynamo", component: DEFAULT_COMPONENT[role], name: "generate" };
	const log = runtime.log.child(TARGET);
	const failure = watchForFailure(engine);
	const kvEvents = options.kvEvents ?? { enabled: role !== "decode" };
	const hosted =
		runtime.systemServer === undefined ? undefined : hostModelFiles(runtime.systemServer, id, options.modelName);
	const [card, generationDefaults] = await Promise.all([
		buildCard({
			displayName: options.modelName,
			sourcePath: options.sourcePath,
			files,
			info,
			role,
			contextLength: options.cardContextLength ?? info.maxModelLen,
			toolCallParser: options.toolCallParser,
			reasoningParser: options.reasoningParser,
			kvEvents: kvEvents.enabled && tap !== undefined,
			meetingPoint: options.meetingPoint,
			routerConfig: options.routerConfig,
			urlOf: hosted?.urlOf,
		}),
		readSamplingDefaults(files.generationConfig),
	]);
	const record: ModelRecord = {
		type: "Model",
		namespace: id.namespace,
		component: id.component,
		endpoint: id.name,
		instance_id: runtime.instanceId,
		card_json: card,
	};
	await checkNeighbours(runtime, record, TARGET);

	const endpoint = runtime.namespace(id.namespace).component(id.component).endpoint(id.name);
	const eosTokenIds = [...new Set([...info.eosTokenIds, ...(options.eosTokenIds ?? [])])];
	const metricLabels = { [LABELS.model]: options.modelName };
	const unprefixed = runtime.metrics.level({ prefix: METRIC_PREFIXES.vllm, labels: null });
	const vllm = new VllmMetrics(unprefixed, engine, info, options.modelName);
	// Before the card: a router that reads there of events must find where they come from.
	const events = await WorkerEvents.open(runtime, {
		engine,
		endpoint: id,
		blockSize: info.blockSize,
		tap,
		kvEvents,
		metricLabels,
	});
	const transfer = await KvTransfer.open(runtime, {
		engine,
		modelName: options.modelName,
		metrics: endpoint.component.metrics,
		config: options.kvTransfer ?? kvTransferConfigFromEnv({}),
		keeps: role === "prefill",
	}).catch(async (error: unknown) => {
		await events.close();
		throw error;
	});
	const closeParts = async () => void (await Promise.all([events.close(), transfer?.close()]));
	const handler = createGenerateHandler({
		engine: vllm.watch(events.watched),
		disaggregation: disaggregation(role, transfer),
		context: {
			maxModelLen: info.maxModelLen,
			vocabSize: info.vocabSize,
			eosTokenIds,
			samplingDefaults: { ...generationDefaults, ...options.samplingDefaults },
			requireMaxTokens: options.requireMaxTokens ?? false,
		},
		// Loaded when first needed: most workers never are asked for log-probabilities.
		loadTokenTexts: async () => (await import("./token-texts.js")).loadTokenTexts(files.tokenizer),
	});
	const served = await endpoint
		.serve(options.wrapHandler?.(handler) ?? handler, {
			register: false,
			metricLabels,
			healthCheckPayload: tokensHealthCheck(options.modelName),
			...(info.device === "mock" ? {} : { deviceType: info.device }),
		})
		.catch(async (error: unknown) => {
			await closeParts();
			throw error;
		});
	registerEngineMetrics(endpoint.component.metrics, engine, info, options.modelName);
	const worker = new Worker(
		runtime,
		engine,
		info,
		new ModelRegistration(runtime, record, served),
		events,
		transfer,
		() => hosted?.remove(),
	);
	try {
		await worker.registration.register();
	} catch (error) {
		await served.stop();
		await closeParts();
		throw error;
	}
	if (info.deviceNote !== undefined) log.info("the model runs on the CPU", { not_on_cuda: info.deviceNote });
	log.info("serving the model", {
		model: options.modelName,
		endpoint: formatEndpointAddress(id),
		device: info.device,
		quantization: info.quantization,
		weights: info.weightFormats?.join(", "),
		kv_cache_dtype: info.kvCacheDtype,
		max_model_len: info.maxModelLen,
		max_num_seqs: info.maxNumSeqs,
		load_seconds: info.loadSeconds,
	});
	void failure.then((error) => worker.engineDied(error));
	return worker;
}

/** A simulated engine has nothing to hand over: it says "dummy", as Dynamo's does. */
function disaggregation(role: WorkerRole, transfer: KvTransfer | undefined): Disaggregation {
	if (transfer === undefined) return role === "prefill" ? { keep: () => "dummy" } : {};
	return {
		...(role === "prefill" && { keep: (output, request) => transfer.keep(output, request) }),
		source: (params, request) => transfer.source(params, request),
	};
}

function watchForFailure(engine: Engine): Promise<Error> {
	return new Promise((resolve) => engine.onFailure(resolve));
}

class Worker implements WorkerHandle {
	readonly info: EngineInfo;
	readonly registration: ModelRegistration;
	readonly failed: Promise<Error>;
	readonly #runtime: DistributedRuntime;
	readonly #engine: Engine;
	readonly #events: WorkerEvents;
	readonly #transfer: KvTransfer | undefined;
	readonly #removeFiles: () => void;
	#tellFailed: (error: Error) => void = () => {};
	#closing: Promise<void> | undefined;

	constructor(
		runtime: DistributedRuntime,
		engine: Engine,
		info: EngineInfo,
		registration: ModelRegistration,
		events: WorkerEvents,
		transfer: KvTransfer | undefined,
		removeFiles: () => void,
	) {
		this.#runtime = runtime;
		this.#engine = engine;
		this.info = info;
		this.registration = registration;
		this.#events = events;
		this.#transfer = transfer;
		this.#removeFiles = removeFiles;
		this.failed = new Promise((resolve) => {
			this.#tellFailed = resolve;
		});
	}

	get card(): ModelDeploymentCard {
		return this.registration.record.card_json;
	}

	get inflight(): number {
		return this.registration.inflight;
	}

	async drain(timeoutMs?: number): Promise<boolean> {
		const [drained] = await Promise.all([this.registration.drain(timeoutMs), this.#events.leave()]);
		// Whoever was told of a prompt a moment ago may still fetch it.
		if (drained) await this.#transfer?.drain(HANDED_OUT_MS);
		return drained;
	}

	close(): Promise<void> {
		this.#closing ??= this.#close();
		return this.#closing;
	}

	async #close(): Promise<void> {
		const { served } = this.registration;
		await this.registration.unregister();
		// The engine answers what is under way with an error that lets frontends go on elsewhere; once that is out, the
		// endpoint has nothing left to cut off.
		await this.#engine.close();
		await served.drain(LAST_WORDS_MS);
		await served.stop();
		await Promise.all([this.#events.close(), this.#transfer?.close()]);
		this.#removeFiles();
	}

	async engineDied(error: Error): Promise<void> {
		if (this.#closing !== undefined) return;
		this.#runtime.log.child(TARGET).error("the engine died; the worker leaves", { error });
		try {
			await this.close();
		} catch (closing) {
			this.#runtime.log.child(TARGET).error("leaving failed", { error: closing });
		}
		this.#tellFailed(error);
	}
}
