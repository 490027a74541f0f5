// SPDX-License-Identifier: Apache-2.0
// From the token-level request on the wire to what the engine runs. Everything in the request comes from
// another process, so each member is checked; a member that would change the result and is not supported is
// refused, never ignored.
import type { EngineRequest, SamplingOptions, StopOptions } from "@dynamo-ts/engine";
import { DynamoError } from "@dynamo-ts/protocols/internal";
import type { BestOfOptions } from "./best-of.js";

/** Sampling values for requests that leave them out; from a model's generation_config.json. */
export interface SamplingDefaults {
	readonly temperature?: number;
	readonly topP?: number;
	readonly topK?: number;
	readonly minP?: number;
	readonly repetitionPenalty?: number;
}

/** What a worker knows about its model when it reads a request. */
export interface RequestContext {
	/** Tokens of prompt and output together. */
	readonly maxModelLen: number;
	/** Token ids run from 0 to vocabSize - 1. */
	readonly vocabSize: number;
	/** End-of-text ids of the model, used unless the request says ignore_eos. */
	readonly eosTokenIds: readonly number[];
	readonly samplingDefaults: SamplingDefaults;
	/** Refuse requests without max_tokens, as Dynamo's simulated engine does. */
	readonly requireMaxTokens: boolean;
}

/** Longest list of stop ids that a request may carry. */
const MAX_STOP_IDS = 1024;

function invalid(message: string, options: { param?: string; code?: string; internal?: string } = {}): DynamoError {
	return new DynamoError("InvalidArgument", options.internal ?? message, {
		publicMessage: message,
		...(options.param === undefined ? {} : { param: options.param }),
		...(options.code === undefined ? {} : { code: options.code }),
	});
}

type Members = Record<string, unknown>;

function isRecord(value: unknown): value is Members {
	return typeof value === "object" && value !== null && !Array.isArray(value) && !ArrayBuffer.isView(value);
}

function section(request: Members, name: string): Members {
	const value = request[name];
	if (value === undefined || value === null) return {};
	if (!isRecord(value)) throw invalid(`${name} must be a map`, { param: name });
	return value;
}

function optionalNumber(members: Members, name: string): number | undefined {
	const value = members[name];
	if (value === undefined || value === null) return undefined;
	if (typeof value === "number") return value;
	if (typeof value === "bigint") return Number(value);
	throw invalid(`${name} must be a number`, { param: name });
}

function optionalBoolean(members: Members, name: string): boolean {
	const value = members[name];
	if (value === undefined || value === null) return false;
	if (typeof value === "boolean") return value;
	throw invalid(`${name} must be true or false`, { param: name });
}

function isTokenId(value: unknown): value is number {
	return typeof value === "number" && Number.isInteger(value) && value >= 0 && value <= 0xffff_ffff;
}

/** A list of token ids: a plain array, or a typed array where the decoder makes one. */
function tokenIdList(value: unknown, name: string): number[] | Uint32Array {
	if (value instanceof Uint32Array) return value;
	if (Array.isArray(value)) {
		for (let i = 0; i < value.length; i++) {
			if (!isTokenId(value[i])) throw invalid(`${name}[${i}] is not a token id`, { param: name });
		}
		return value as number[];
	}
	// A 64-bit element type gives bigints; anything outside 32 bits is no token id.
	if (ArrayBuffer.isView(value) && !(value instanceof DataView)) {
		return tokenIdList(
			Array.from(value as unknown as ArrayLike<number | bigint>, (id) => Number(id)),
			name,
		);
	}
	throw invalid(`${name} must be a list of token ids`, { param: name });
}

function optionalTokenIds(members: Members, name: string, most = MAX_STOP_IDS): readonly number[] | undefined {
	const value = members[name];
	if (value === undefined || value === null) return undefined;
	const ids = tokenIdList(value, name);
	if (ids.length > most) {
		throw invalid(`${name} has ${ids.length} entries; at most ${most} are taken`, { param: name });
	}
	return Array.isArray(ids) ? ids : Array.from(ids);
}

function union(...lists: (readonly number[] | undefined)[]): number[] {
	const all = new Set<number>();
	for (const list of lists) for (const id of list ?? []) all.add(id);
	return [...all];
}

function readPrompt(request: Members, context: RequestContext): number[] | Uint32Array {
	if (request.token_ids === undefined || request.token_ids === null) {
		throw invalid("the request has no token_ids; this worker takes tokens (model_input Tokens)", {
			param: "token_ids",
		});
	}
	const prompt = tokenIdList(request.token_ids, "token_ids");
	if (prompt.length === 0) throw invalid("the prompt is empty", { param: "token_ids" });
	for (let i = 0; i < prompt.length; i++) {
		if (prompt[i]! >= context.vocabSize) {
			throw invalid(`token_ids[${i}] is ${prompt[i]}, but the model has ${context.vocabSize} tokens (from 0)`, {
				param: "token_ids",
			});
		}
	}
	if (prompt.length >= context.maxModelLen) {
		throw invalid(
			`This model's maximum context length is ${context.maxModelLen} tokens. However, the prompt has ${prompt.length} tokens, which leaves no room for an answer. Please shorten the prompt.`,
			{ param: "messages", code: "context_length_exceeded" },
		);
	}
	return prompt;
}

function readSampling(request: Members, context: RequestContext): SamplingOptions {
	const options = section(request, "sampling_options");
	const defaults = context.samplingDefaults;
	if (optionalBoolean(options, "use_beam_search")) throw invalid("use_beam_search is not supported by this worker");
	if (options.guided_decoding !== undefined && options.guided_decoding !== null) {
		throw invalid("guided decoding is not supported by this worker", { param: "response_format" });
	}
	const n = candidates(options);
	// Several choices that are all the likeliest text would be one choice.
	const temperature = n > 1 && defaults.temperature === 0 ? undefined : defaults.temperature;
	const seed = options.seed;
	if (seed !== undefined && seed !== null && typeof seed !== "number" && typeof seed !== "bigint") {
		throw invalid("seed must be a whole number", { param: "seed" });
	}
	return {
		n,
		seed: seed ?? undefined,
		temperature: optionalNumber(options, "temperature") ?? temperature,
		topP: optionalNumber(options, "top_p") ?? defaults.topP,
		topK: optionalNumber(options, "top_k") ?? defaults.topK,
		minP: optionalNumber(options, "min_p") ?? defaults.minP,
		presencePenalty: optionalNumber(options, "presence_penalty"),
		frequencyPenalty: optionalNumber(options, "frequency_penalty"),
		repetitionPenalty: optionalNumber(options, "repetition_penalty") ?? defaults.repetitionPenalty,
		logitBias: readLogitBias(options.logit_bias),
		allowedTokenIds: optionalTokenIds(
			section(section(request, "extra_args"), "sampling_options"),
			"allowed_token_ids",
			context.vocabSize,
		),
	};
}

/**
 * Choices to generate: best_of where it is more than n. Frontends send 0 for none.
 * @throws DynamoError `InvalidArgument` for fewer than n.
 */
function candidates(options: Members): number {
	const n = optionalNumber(options, "n") ?? 1;
	const bestOf = optionalNumber(options, "best_of") ?? 0;
	if (bestOf !== 0 && bestOf < n) {
		throw invalid(`best_of must be at least n, got best_of=${bestOf} and n=${n}`, { param: "best_of" });
	}
	return Math.max(n, bestOf);
}

/** What best_of of a request that `toEngineRequest` took asks for; undefined when the client gets all choices. */
export function readBestOf(payload: unknown): BestOfOptions | undefined {
	const request = payload as Members;
	const options = section(request, "sampling_options");
	const n = optionalNumber(options, "n") ?? 1;
	if (candidates(options) === n) return undefined;
	const conditions = section(request, "stop_conditions");
	const { stop } = conditions;
	if (stop !== undefined && stop !== null && !isTextList(stop)) throw invalid("stop must be a list of texts");
	return {
		n,
		stops: stop ?? [],
		minTokens: optionalNumber(conditions, "min_tokens") ?? 0,
		withLogprobs: optionalNumber(section(request, "output_options"), "logprobs") !== undefined,
	};
}

function isTextList(value: unknown): value is string[] {
	return Array.isArray(value) && value.every((item) => typeof item === "string" && item !== "");
}

function readLogitBias(value: unknown): [number, number][] | undefined {
	if (value === undefined || value === null) return undefined;
	if (!isRecord(value)) throw invalid("logit_bias must be a map of token id to number", { param: "logit_bias" });
	const pairs: [number, number][] = [];
	for (const [key, bias] of Object.entries(value)) {
		const id = Number(key);
		if (!isTokenId(id) || typeof bias !== "number") {
			throw invalid(`logit_bias has a bad entry "${key}": token id to number is expected`, { param: "logit_bias" });
		}
		pairs.push([id, bias]);
	}
	return pairs.length === 0 ? undefined : pairs;
}

function readStop(request: Members, promptLength: number, context: RequestContext): StopOptions {
	const conditions = section(request, "stop_conditions");
	const ignoreEos = optionalBoolean(conditions, "ignore_eos");
	const maxTokens = optionalNumber(conditions, "max_tokens");
	if (maxTokens === undefined && context.requireMaxTokens) {
		throw invalid("`max_output_tokens` (or `max_tokens`) is required by the mocker worker", {
			param: "max_tokens",
			internal: "max_output_tokens must be specified for mocker",
		});
	}
	return {
		// Never more than fits: the engine ends with "length" at the end of the context all the same.
		maxTokens: maxTokens === undefined ? undefined : Math.min(maxTokens, context.maxModelLen - promptLength),
		minTokens: optionalNumber(conditions, "min_tokens"),
		ignoreEos,
		stopTokenIds: union(
			optionalTokenIds(conditions, "stop_token_ids"),
			optionalTokenIds(conditions, "stop_token_ids_visible"),
		),
		eosTokenIds: union(
			ignoreEos ? undefined : context.eosTokenIds,
			optionalTokenIds(request, "eos_token_ids"),
			optionalTokenIds(conditions, "stop_token_ids_hidden"),
		),
	};
}

/** How many tokens of the prompt another worker generated; our frontends say so when they move a stream. */
function readGenerated(request: Members, prompt: ArrayLike<number>): number | undefined {
	const generated = optionalNumber(request, "generated_tokens");
	if (generated === undefined) return undefined;
	if (Number.isInteger(generated) && generated >= 0 && generated <= prompt.length) return generated;
	throw invalid(`generated_tokens is ${generated}; the prompt has ${prompt.length} tokens`);
}

function readRouting(request: Members): Pick<EngineRequest, "priority" | "cacheSalt"> {
	const routing = section(request, "routing");
	const dpRank = optionalNumber(routing, "dp_rank");
	if (dpRank !== undefined && dpRank !== 0) throw invalid(`dp_rank ${dpRank} is out of bounds for dp_size 1`);
	if (routing.lora_name !== undefined && routing.lora_name !== null) {
		throw invalid(`this worker has no LoRA adapter "${String(routing.lora_name)}"`, { param: "model" });
	}
	const salt = routing.cache_salt;
	return {
		priority: optionalNumber(routing, "priority"),
		cacheSalt: typeof salt === "string" ? salt : undefined,
	};
}

/**
 * Reads a preprocessed request.
 * @param requestId the id under which the engine will know it.
 * @throws DynamoError `InvalidArgument` naming what is wrong; `code` is `context_length_exceeded` for a prompt
 * that leaves no room for a token.
 */
export function toEngineRequest(requestId: string, payload: unknown, context: RequestContext): EngineRequest {
	if (!isRecord(payload)) throw invalid("the request must be a map");
	for (const name of ["multi_modal_data", "prompt_embeds"]) {
		if (payload[name] !== undefined && payload[name] !== null) {
			throw invalid(`${name} is not supported by this worker; it takes text only`);
		}
	}
	const tokenIds = readPrompt(payload, context);
	const output = section(payload, "output_options");
	return {
		requestId,
		tokenIds,
		sampling: readSampling(payload, context),
		stop: readStop(payload, tokenIds.length, context),
		logprobs: optionalNumber(output, "logprobs"),
		promptLogprobs: optionalNumber(output, "prompt_logprobs"),
		generatedTokens: readGenerated(payload, tokenIds),
		...readRouting(payload),
	};
}
