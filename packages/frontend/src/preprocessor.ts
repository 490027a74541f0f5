// SPDX-License-Identifier: Apache-2.0
import {
	type ChatCompletionRequest,
	type CompletionRequest,
	DynamoError,
	type PreprocessedRequest,
	type SamplingOptions,
	type StopConditions,
} from "@dynamo-ts/protocols/internal";
import { type ChatMessage, shouldAddSpecialTokens, TemplateError, type Tokenizer } from "@dynamo-ts/tokenizers";
import type { ChoiceRules } from "./choice-state.js";
import type { FrontendMetrics } from "./frontend-metrics.js";
import { guidedDecoding } from "./guided-decoding.js";
import type { PromptRequest } from "./leg.js";
import type { ModelMaterials } from "./model-materials.js";
import { BYPASS_ANNOTATION } from "./prefill-leg.js";
import { type RoutingHeaders, routingHints } from "./routing-hints.js";
import type { WorkerSet } from "./worker-set.js";

/** A request made ready for workers. */
export interface Preprocessed {
	readonly prompts: readonly PromptRequest[];
	readonly rules: ChoiceRules;
	/** The rendered chat template; chat only. */
	readonly formattedPrompt: string | undefined;
}

/** Fields that chat and completions have in common. */
type CommonRequest = ChatCompletionRequest | CompletionRequest;

/** Turns requests of one worker set into token-level requests. Members and their order are those of Dynamo 1.6.1. */
export class Preprocessor {
	private readonly set: WorkerSet;
	private readonly materials: ModelMaterials;
	private readonly metrics: FrontendMetrics;

	constructor(set: WorkerSet, materials: ModelMaterials, metrics: FrontendMetrics) {
		this.set = set;
		this.materials = materials;
		this.metrics = metrics;
	}

	/**
	 * @throws DynamoError `InvalidArgument` when the template refuses the messages or the prompt does not fit the
	 * context (code `context_length_exceeded`).
	 */
	async chat(request: ChatCompletionRequest, headers: RoutingHeaders = {}): Promise<Preprocessed> {
		refuseUnsupported(request);
		const formattedPrompt = this.render(request);
		const given = request.nvext?.token_data;
		const tokenIds = given ?? (await this.encodeChat(formattedPrompt, request.model));
		this.checkPrompt(tokenIds, request, "messages");
		const maxTokens = request.max_completion_tokens ?? request.max_tokens ?? null;
		const logprobs = request.logprobs === true ? (request.top_logprobs ?? 1) : null;
		return {
			prompts: [{ body: this.body(request, headers, tokenIds, maxTokens, logprobs), echo: "", echoLogprobs: false }],
			rules: this.rules(request, logprobs),
			formattedPrompt,
		};
	}

	/** @throws DynamoError as {@link chat}, and for prompts with token ids that the model does not have. */
	async completion(request: CompletionRequest, headers: RoutingHeaders = {}): Promise<Preprocessed> {
		refuseUnsupported(request);
		if (typeof request.suffix === "string" && request.suffix !== "") {
			throw invalid("suffix is not supported by this model: it continues text, it does not fill gaps", "suffix");
		}
		if (request.stream === true && (request.best_of ?? 0) > (request.n ?? 1)) {
			throw invalid("best_of results cannot be streamed: leave out stream, or make best_of equal to n", "best_of");
		}
		const prompts: PromptRequest[] = [];
		const given = request.nvext?.token_data;
		for (const text of splitPrompts(request.prompt)) {
			const prompt = given ?? text;
			const tokenIds = typeof prompt === "string" ? await this.encodePlain(prompt, request.model) : prompt;
			this.checkPrompt(tokenIds, request, "prompt");
			const echo = request.echo === true ? this.textOf(prompt) : "";
			const body = this.body(request, headers, tokenIds, request.max_tokens ?? null, request.logprobs ?? null);
			const echoLogprobs = echo !== "" && request.logprobs !== undefined;
			if (echoLogprobs) {
				const options = body.output_options;
				options.prompt_logprobs = Math.max(options.prompt_logprobs ?? 0, request.logprobs ?? 0);
			}
			prompts.push({ body, echo, echoLogprobs });
		}
		return {
			prompts,
			rules: this.rules(request, request.logprobs ?? null),
			formattedPrompt: undefined,
		};
	}

	private render(request: ChatCompletionRequest): string {
		const { chatTemplate, chatProblem } = this.materials;
		if (chatTemplate === undefined) {
			throw invalid(chatProblem?.message ?? "the model has no chat template", "messages");
		}
		const startedAt = performance.now();
		if (request.messages.some(({ content }) => Array.isArray(content) && content.length === 0)) {
			throw new DynamoError("InvalidArgument", "the content of a message is an empty list", { param: "messages" });
		}
		try {
			return chatTemplate.render({
				messages: request.messages as unknown as readonly ChatMessage[],
				tools: request.tool_choice === "none" ? null : (request.tools as readonly unknown[] | null | undefined),
				addGenerationPrompt: request.add_generation_prompt ?? undefined,
				continueFinalMessage: request.continue_final_message ?? undefined,
				kwargs: templateVariables(request),
			});
		} catch (error) {
			if (!(error instanceof TemplateError)) throw error;
			throw new DynamoError("InvalidArgument", error.message, { param: "messages", cause: error });
		} finally {
			this.metrics.templateSeconds.observe((performance.now() - startedAt) / 1000);
		}
	}

	private async encodeChat(text: string, model: string): Promise<number[]> {
		const startedAt = performance.now();
		const ids = await encode(this.materials.tokenizer, text, false);
		this.countEncoded(model, ids.length);
		const tookMs = performance.now() - startedAt;
		this.metrics.tokenizeSeconds.observe(tookMs / 1000);
		this.metrics.tokenizerLatencyMs.withLabelValues("tokenize").observe(tookMs);
		return ids;
	}

	private async encodePlain(text: string, model: string): Promise<number[]> {
		const startedAt = performance.now();
		const { tokenizer, special } = this.materials;
		const addSpecialTokens = shouldAddSpecialTokens("completion", text, special.variables.bos_token);
		const ids = await encode(tokenizer, text, addSpecialTokens);
		this.metrics.tokenizerLatencyMs.withLabelValues("tokenize").observe(performance.now() - startedAt);
		this.countEncoded(model, ids.length);
		return ids;
	}

	private countEncoded(model: string, tokens: number): void {
		this.metrics.tokenizerCacheMisses.inc();
		this.metrics.tokensEncoded.withLabelValues(model).inc(tokens);
	}

	private textOf(prompt: string | readonly number[]): string {
		return typeof prompt === "string" ? prompt : this.materials.tokenizer.decode(prompt, { skipSpecialTokens: false });
	}

	/** The wording is OpenAI's: clients look for it. */
	private checkPrompt(tokenIds: readonly number[], request: CommonRequest, source: "messages" | "prompt"): void {
		const { vocabSize } = this.materials.tokenizer;
		const strange = tokenIds.find((id) => id >= vocabSize);
		if (strange !== undefined) {
			throw new DynamoError("InvalidArgument", `token id ${strange} is not in the vocabulary of ${vocabSize} tokens`, {
				param: source,
			});
		}
		const limit = this.set.contextLimit;
		if (limit === undefined || tokenIds.length < limit) return;
		const count = tokenIds.length;
		const subject = source === "messages" ? "your messages" : "your prompt";
		const room = count === limit ? " and at least 1 more is needed for the completion" : "";
		const wanted = ("max_completion_tokens" in request ? request.max_completion_tokens : null) ?? request.max_tokens;
		const asked =
			typeof wanted === "number" ? ` (${count + wanted} with the ${wanted} requested for the completion)` : "";
		throw new DynamoError("InvalidArgument", `prompt of ${count} tokens, context of ${limit}`, {
			publicMessage:
				`This model's maximum context length is ${limit} tokens. However, ${subject} resulted in ${count} tokens` +
				`${asked}${room}. Please reduce the length of the ${source}.`,
			code: "context_length_exceeded",
			param: source,
		});
	}

	private body(
		request: CommonRequest,
		headers: RoutingHeaders,
		tokenIds: readonly number[],
		maxTokens: number | null,
		logprobs: number | null,
	): PreprocessedRequest {
		const { special } = this.materials;
		const nvext = request.nvext ?? undefined;
		const eosTokenIds = request.ignore_eos === true ? [] : [...special.eosTokenIds];
		const noStopTrim = noStopTrimOf(request);
		return {
			model: request.model,
			token_ids: tokenIds as number[],
			stop_conditions: stopConditions(request, maxTokens, eosTokenIds),
			sampling_options: samplingOptions(request),
			output_options: {
				...(noStopTrim === undefined ? {} : { no_stop_trim: noStopTrim }),
				logprobs,
				prompt_logprobs: request.prompt_logprobs ?? null,
				skip_special_tokens: request.skip_special_tokens ?? null,
				formatted_prompt: null,
				return_tokens_as_token_ids: request.return_tokens_as_token_ids ?? null,
			},
			eos_token_ids: eosTokenIds,
			mdc_sum: this.set.sum,
			annotations: (nvext?.annotations ?? []).filter((annotation) => annotation !== BYPASS_ANNOTATION),
			routing: routingHints(request, headers, this.set.card.lora?.name),
			router_config_override: null,
			...optionalMembers(request),
		};
	}

	private rules(request: CommonRequest, logprobs: number | null): ChoiceRules {
		const stopIds = new Set(stopTokenIds(request));
		if (request.ignore_eos !== true) for (const id of this.materials.special.eosTokenIds) stopIds.add(id);
		return {
			tokenizer: this.materials.tokenizer,
			skipSpecialTokens: request.skip_special_tokens ?? true,
			stops: stopStrings(request) ?? [],
			includeStopString: request.include_stop_str_in_output === true || noStopTrimOf(request) === true,
			showStopTokens: noStopTrimOf(request) === true,
			stopTokenIds: stopIds,
			minTokens: request.min_tokens ?? 0,
			wantLogprobs: logprobs !== null,
			topLogprobs: logprobs ?? 0,
			// A completion's number is that of the alternatives beside the chosen token, so 0 is not none.
			hideAlternatives: "messages" in request && logprobs === 0,
			promptLogprobs: request.prompt_logprobs !== undefined,
			tokensAsIds: request.return_tokens_as_token_ids === true,
		};
	}
}

/** At once where that can be, which is nearly always. As in Dynamo, U+0000 is left out. */
function encode(tokenizer: Tokenizer, given: string, addSpecialTokens: boolean): number[] | Promise<number[]> {
	const text = given.includes("\0") ? given.replaceAll("\0", "") : given;
	return tokenizer.encodeNow(text, { addSpecialTokens }) ?? tokenizer.encode(text, { addSpecialTokens });
}

/** Request fields that only a template can follow, under the names that templates use. */
function templateVariables(request: ChatCompletionRequest): Record<string, unknown> {
	const { reasoning_effort, thinking } = request;
	const variables: Record<string, unknown> = {};
	if (reasoning_effort !== undefined) variables.reasoning_effort = reasoning_effort;
	if (thinking !== undefined) {
		variables.enable_thinking = typeof thinking === "boolean" ? thinking : thinking.type !== "disabled";
	}
	return { ...variables, ...request.chat_template_args };
}

/**
 * Refuses what would change the answer and cannot be done here, so that nothing is ignored in silence.
 * @throws DynamoError `InvalidArgument` that names the field.
 */
function refuseUnsupported(request: CommonRequest): void {
	if (request.detokenize === false) {
		throw invalid("detokenize: false is not supported: ask for logprobs to get tokens", "detokenize");
	}
	if ("prompt_embeds" in request && request.prompt_embeds !== undefined) {
		throw invalid("prompt_embeds is not supported: send the prompt as text or token ids", "prompt_embeds");
	}
}

function invalid(message: string, param: string): DynamoError {
	return new DynamoError("InvalidArgument", message, { publicMessage: message, param });
}

/** A prompt is one text, one list of token ids, or a list of either. */
function splitPrompts(prompt: CompletionRequest["prompt"]): (string | readonly number[])[] {
	if (typeof prompt === "string") return [prompt];
	const list = prompt as readonly (string | number | readonly number[])[];
	return typeof list[0] === "number" ? [list as readonly number[]] : (list as (string | readonly number[])[]);
}

function stopStrings(request: CommonRequest): string[] | null {
	const { stop } = request;
	if (stop === undefined) return null;
	if (typeof stop === "string") return [stop];
	return isTokenIds(stop) ? null : [...stop];
}

/** `stop` may list token ids instead of texts. */
function stopTokenIds(request: CommonRequest): number[] {
	const { stop } = request;
	return [...(request.stop_token_ids ?? []), ...(isTokenIds(stop) ? stop : [])];
}

/** Only completions have it. */
function noStopTrimOf(request: CommonRequest): boolean | undefined {
	return "no_stop_trim" in request ? (request.no_stop_trim ?? undefined) : undefined;
}

function isTokenIds(stop: CommonRequest["stop"]): stop is number[] {
	return Array.isArray(stop) && typeof stop[0] === "number";
}

/** With ignore_eos the client's own stop ids are not sent either, as in Dynamo; they are still looked for here. */
function stopConditions(request: CommonRequest, maxTokens: number | null, eosTokenIds: number[]): StopConditions {
	const given = request.stop_token_ids !== undefined || isTokenIds(request.stop);
	return {
		max_tokens: maxTokens,
		stop: stopStrings(request),
		stop_token_ids: given && request.ignore_eos !== true ? stopTokenIds(request) : null,
		stop_token_ids_visible: null,
		stop_token_ids_hidden: eosTokenIds.length === 0 ? null : eosTokenIds,
		min_tokens: request.min_tokens ?? null,
		ignore_eos: request.ignore_eos ?? null,
		max_thinking_tokens: request.nvext?.max_thinking_tokens ?? thinkingBudget(request),
	};
}

function thinkingBudget(request: CommonRequest): number | null {
	return "thinking_token_budget" in request ? (request.thinking_token_budget ?? null) : null;
}

function samplingOptions(request: CommonRequest): SamplingOptions {
	const greedy = request.nvext?.greed_sampling === true;
	const bias = request.logit_bias;
	return {
		n: request.n ?? null,
		best_of: ("best_of" in request ? (request.best_of as number | null | undefined) : undefined) ?? null,
		presence_penalty: request.presence_penalty ?? null,
		frequency_penalty: request.frequency_penalty ?? null,
		repetition_penalty: request.repetition_penalty ?? null,
		temperature: greedy ? 0 : (request.temperature ?? null),
		top_p: greedy ? null : (request.top_p ?? null),
		// 0 and -1 both mean all of them.
		top_k: greedy ? null : request.top_k === 0 ? -1 : (request.top_k ?? null),
		min_p: greedy ? null : (request.min_p ?? null),
		use_beam_search: null,
		length_penalty: null,
		seed: request.seed ?? null,
		include_stop_str_in_output: request.include_stop_str_in_output ?? null,
		guided_decoding: guidedDecoding(request),
		...(bias === null || bias === undefined || Object.keys(bias).length === 0 ? {} : { logit_bias: bias }),
	};
}

/** What travels under names of its own, for workers that know them; undefined when there is nothing. */
function extraArgsOf(request: CommonRequest): Record<string, unknown> | undefined {
	const nvext = definedOf({
		extra_fields: request.nvext?.extra_fields,
		token_in: Array.isArray(request.nvext?.token_data) ? true : undefined,
		cache_salt: (request.nvext?.cache_salt ?? request.cache_salt) || undefined,
	});
	const sampling = definedOf({ detokenize: request.detokenize, allowed_token_ids: request.allowed_token_ids });
	return definedOf({ nvext, sampling_options: sampling });
}

/** Members of the body that are absent when unset, in Dynamo's order. */
function optionalMembers(request: CommonRequest): Partial<PreprocessedRequest> {
	const { nvext } = request;
	const members = {
		extra_args: extraArgsOf(request),
		router: "messages" in request ? nvext?.router : undefined,
		mm_processor_kwargs: "mm_processor_kwargs" in request ? request.mm_processor_kwargs : undefined,
		media_io_kwargs: "media_io_kwargs" in request ? request.media_io_kwargs : undefined,
		request_timestamp_ms: nvext?.request_timestamp_ms,
	};
	return (definedOf(members) ?? {}) as Partial<PreprocessedRequest>;
}

/** Without the members that are null or undefined; undefined when none is left. */
function definedOf(members: Record<string, unknown>): Record<string, unknown> | undefined {
	const defined = Object.entries(members).filter(([, value]) => value !== null && value !== undefined);
	return defined.length === 0 ? undefined : Object.fromEntries(defined);
}
