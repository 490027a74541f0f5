// SPDX-License-Identifier: Apache-2.0
// A worker of one's own: any program that can yield text or token ids becomes a model that frontends list and call.
import {
	ENV,
	type EndpointId,
	formatModelType,
	type ModelDeploymentCard,
	type ModelRecord,
	type PreprocessedRequest,
	slugify,
} from "@dynamo-ts/protocols/internal";
import type { DistributedRuntime, EndpointHandler } from "@dynamo-ts/runtime";
import { checkedModelFiles, hostModelFiles } from "./card.js";
import { formatEndpointAddress, parseEndpointAddress } from "./endpoint-address.js";
import { type GenerateContext, generatorHandler } from "./generator-handler.js";
import { findModelFiles } from "./model-files.js";
import { checkNeighbours, ModelRegistration, tokensHealthCheck } from "./registration.js";
import { type OpenAIRequest, type TextItem, textItems } from "./text-items.js";
import { readTokensRequest, type TokensItem, tokensItems } from "./tokens-items.js";

/** Why a generation ended; what a generator returns, "stop" when it returns nothing. */
export type EndReason = "stop" | "length" | "content_filter";

/** A generator's items, then why it ended. */
export type Generated<T> =
	| AsyncGenerator<T, EndReason | undefined>
	| AsyncGenerator<T, void>
	| Generator<T, EndReason | undefined>
	| Generator<T, void>;

interface ModelOptions {
	/** The model's public name. */
	readonly modelName: string;
	/** `dyn://namespace.component.endpoint`; default: `generate` of a component that is named after the model. */
	readonly endpoint?: string;
	/** Tokens of prompt and output together, told to frontends; default: no limit is known. */
	readonly contextLength?: number;
	/** Members that replace those of the model card. */
	readonly card?: Partial<ModelDeploymentCard>;
	/** A request that proves that the model works, for health checks; default: one token or one word. */
	readonly healthCheckPayload?: unknown;
}

/** A model that takes OpenAI's request as the client sent it and makes text. */
export interface TextModelOptions extends ModelOptions {
	readonly input: "text";
	/**
	 * Answers a request: yields pieces of text, or whole OpenAI chunks for what text cannot say. An exception fails the
	 * request; a DynamoError says how.
	 */
	generate(request: OpenAIRequest, context: GenerateContext): Generated<TextItem>;
}

/** A model that takes token ids and makes token ids; the frontend applies the chat template, tokenizes and detokenizes. */
export interface TokensModelOptions extends ModelOptions {
	readonly input: "tokens";
	/** Folder with config.json, tokenizer.json and, for chat, tokenizer_config.json. */
	readonly modelPath: string;
	/**
	 * Answers a request: yields a token id, several, or a whole output for what ids cannot say. It need not look at
	 * max_tokens: no more than that is taken of it.
	 */
	generate(request: PreprocessedRequest, context: GenerateContext): Generated<TokensItem>;
}

export type CustomModelOptions = TextModelOptions | TokensModelOptions;

/** A model that is being served. */
export interface CustomModel {
	readonly card: ModelDeploymentCard;
	/** Where it is served: `dyn://namespace.component.endpoint`. */
	readonly address: string;
	/** Requests being handled now. */
	readonly inflight: number;
	/** Leaves discovery and waits for requests under way, `timeoutMs` milliseconds at most; false when some remain. */
	drain(timeoutMs?: number): Promise<boolean>;
	/** Leaves discovery and ends what is still under way. The runtime's shutdown does that too. Idempotent. */
	close(): Promise<void>;
}

/**
 * Registers a model and serves it with a generator. When the promise resolves, frontends can find it.
 * @throws DynamoError `NotFound` for a missing file of the model, `InvalidArgument` for a bad endpoint, `Conflict` when
 * the endpoint belongs to another model.
 */
export async function serveModel(runtime: DistributedRuntime, options: CustomModelOptions): Promise<CustomModel> {
	const id = endpointOf(options);
	const model = await describe(runtime, id, options);
	try {
		return await serveDescribed(runtime, id, model, options);
	} catch (error) {
		model.removeFiles();
		throw error;
	}
}

async function serveDescribed(
	runtime: DistributedRuntime,
	id: EndpointId,
	model: Described,
	options: CustomModelOptions,
): Promise<CustomModel> {
	const card = { ...model.card, ...options.card };
	const record: ModelRecord = {
		type: "Model",
		namespace: id.namespace,
		component: id.component,
		endpoint: id.name,
		instance_id: runtime.instanceId,
		card_json: card,
	};
	await checkNeighbours(runtime, record, "dynamo_worker");
	const endpoint = runtime.namespace(id.namespace).component(id.component).endpoint(id.name);
	const served = await endpoint.serve(model.handler, {
		register: false,
		healthCheckPayload: options.healthCheckPayload ?? model.healthCheckPayload,
		deviceType: "cpu",
	});
	const registration = new ModelRegistration(runtime, record, served);
	try {
		await registration.register();
	} catch (error) {
		await served.stop();
		throw error;
	}
	return {
		card,
		address: formatEndpointAddress(id),
		get inflight() {
			return registration.inflight;
		},
		drain: (timeoutMs) => registration.drain(timeoutMs),
		close: async () => {
			await registration.unregister();
			await served.stop();
			model.removeFiles();
		},
	};
}

interface Described {
	readonly card: ModelDeploymentCard;
	readonly handler: EndpointHandler;
	readonly healthCheckPayload: unknown;
	removeFiles(): void;
}

async function describe(runtime: DistributedRuntime, id: EndpointId, options: CustomModelOptions): Promise<Described> {
	const { modelName, contextLength } = options;
	const base: ModelDeploymentCard = {
		display_name: modelName,
		slug: slugify(modelName),
		...(contextLength === undefined ? {} : { context_length: contextLength }),
		kv_cache_block_size: 16,
		migration_limit: 0,
		model_type: formatModelType(["Chat", "Completions"]),
		model_input: "Text",
		worker_type: "aggregated",
		needs: [],
		...(contextLength === undefined ? {} : { runtime_config: { context_length: contextLength } }),
	};
	const log = runtime.log.child("dynamo_worker");
	if (options.input === "text") {
		const generate = options.generate.bind(options);
		return {
			card: base,
			handler: generatorHandler((request, context) => textItems(request, modelName, context, generate), log),
			healthCheckPayload: {
				model: modelName,
				messages: [{ role: "user", content: "ping" }],
				max_tokens: 1,
				_HEALTH_CHECK: true,
			},
			removeFiles: () => {},
		};
	}
	const files = await findModelFiles({ kind: "folder", path: options.modelPath }, options.modelPath);
	const { systemServer } = runtime;
	const hosted = systemServer === undefined ? undefined : hostModelFiles(systemServer, id, modelName);
	const generate = options.generate.bind(options);
	return {
		card: {
			...base,
			model_input: "Tokens",
			source_path: options.modelPath,
			...(await checkedModelFiles(files, hosted?.urlOf)),
		},
		handler: generatorHandler((request, context) => {
			return tokensItems(readTokensRequest(request, contextLength), context, generate);
		}, log),
		healthCheckPayload: tokensHealthCheck(modelName),
		removeFiles: () => hosted?.remove(),
	};
}

function endpointOf(options: CustomModelOptions): EndpointId {
	if (options.endpoint !== undefined) return parseEndpointAddress(options.endpoint);
	const namespace = process.env[ENV.DYN_NAMESPACE] || "dynamo";
	return { namespace, component: slugify(options.modelName), name: "generate" };
}
