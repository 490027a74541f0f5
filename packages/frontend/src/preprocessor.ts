// SPDX-License-Identifier: Apache-2.0
import {
	type ChatCompletionRequest,
	type CompletionRequest,
	DynamoError,
	type GuidedDecoding,
	type NvExt,
	normaliseId,
	type PreprocessedRequest,
	type RoutingHints,
	type SamplingOptions,
	type StopConditions,
} from "@dynamo-ts/protocols/internal";
import { type ChatMessage, shouldAddSpecialTokens, TemplateError, type Tokenizer } from "@dynamo-ts/tokenizers";
import type { ChoiceRules } from "./choice-state.js";
import type { FrontendMetrics } from "./frontend-metrics.js";
import type { PromptRequest } from "./generation.js";
import type { ModelMaterials } from "./model-materials.js";
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
	async chat(request: ChatCompletionRequest): Promise<Preprocessed> {
		refuseUnsupported(request);
		const formattedPrompt = this.render(request);
		const given = request.nvext?.token_data;
		const tokenIds = given ?? (await this.encodeChat(formattedPrompt));
		this.checkPrompt(tokenIds, request, "messages");
		const maxTokens = request.max_completion_tokens ?? request.max_tokens ?? null;
		const logprobs = request.logprobs === true ? (request.top_logprobs ?? 0) : null;
		return {
			prompts: [{ body: this.body(request, tokenIds, maxTokens, logprobs), echo: "" }],
			rules: this.rules(request, logprobs),
			formattedPrompt,
		};
	}

	/** @throws DynamoError as {@link chat}, and for prompts with token ids that the model does not have. */
	async completion(request: CompletionRequest): Promise<Preprocessed> {
		refuseUnsupported(request);
		if (typeof request.suffix === "string" && request.suffix !== "") {
			throw invalid("suffix is not supported by this model: it continues text, it does not fill gaps", "suffix");
		}
		if (request.echo === true && typeof request.logprobs === "number") {
			throw invalid("echo together with logprobs is not supported: leave one of them out", "echo");
		}
		const prompts: PromptRequest[] = [];
		for (const prompt of splitPrompts(request.prompt)) {
			const tokenIds = typeof prompt === "string" ? await this.encodePlain(prompt) : prompt;
			this.checkPrompt(tokenIds, request, "prompt");
			const echo = request.echo === true ? this.textOf(prompt) : "";
			const body = this.body(request, tokenIds, request.max_tokens ?? null, request.logprobs ?? null);
			prompts.push({ body, echo });
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

	private async encodeChat(text: string): Promise<number[]> {
		const startedAt = performance.now();
		const ids = await encode(this.materials.tokenizer, text, false);
		const tookMs = performance.now() - startedAt;
		this.metrics.tokenizeSeconds.observe(tookMs / 1000);
		this.metrics.tokenizerLatencyMs.withLabelValues("tokenize").observe(tookMs);
		return ids;
	}

	private async encodePlain(text: string): Promise<number[]> {
		const startedAt = performance.now();
		const { tokenizer, special } = this.materials;
		const addSpecialTokens = shouldAddSpecialTokens("completion", text, special.variables.bos_token);
		const ids = await encode(tokenizer, text, addSpecialTokens);
		this.metrics.tokenizerLatencyMs.withLabelValues("tokenize").observe(performance.now() - startedAt);
		return ids;
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
		tokenIds: readonly number[],
		maxTokens: number | null,
		logprobs: number | null,
	): PreprocessedRequest {
		const { special } = this.materials;
		const nvext = request.nvext ?? undefined;
		const eosTokenIds = request.ignore_eos === true ? [] : [...special.eosTokenIds];
		const extraArgs = extraArgsOf(nvext);
		return {
			model: request.model,
			token_ids: tokenIds as number[],
			stop_conditions: stopConditions(request, maxTokens, eosTokenIds),
			sampling_options: samplingOptions(request),
			output_options: {
				logprobs,
				prompt_logprobs: request.prompt_logprobs ?? null,
				skip_special_tokens: request.skip_special_tokens ?? null,
				formatted_prompt: null,
				return_tokens_as_token_ids: request.return_tokens_as_token_ids ?? null,
			},
			eos_token_ids: eosTokenIds,
			mdc_sum: this.set.sum,
			annotations: [...(nvext?.annotations ?? [])],
			routing: routingHints(request, this.set),
			router_config_override: null,
			...(extraArgs === undefined ? {} : { extra_args: extraArgs }),
		};
	}

	private rules(request: CommonRequest, logprobs: number | null): ChoiceRules {
		const stopIds = new Set(stopTokenIds(request));
		if (request.ignore_eos !== true) for (const id of this.materials.special.eosTokenIds) stopIds.add(id);
		return {
			tokenizer: this.materials.tokenizer,
			skipSpecialTokens: request.skip_special_tokens ?? true,
			stops: stopStrings(request) ?? [],
			includeStopString: request.include_stop_str_in_output ?? false,
			stopTokenIds: stopIds,
			minTokens: request.min_tokens ?? 0,
			wantLogprobs: logprobs !== null,
			topLogprobs: logprobs ?? 0,
		};
	}
}

/** At once where that can be, which is nearly always. */
function encode(tokenizer: Tokenizer, text: string, addSpecialTokens: boolean): number[] | Promise<number[]> {
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
	if (request.allowed_token_ids !== undefined) {
		throw invalid("allowed_token_ids is not supported: use logit_bias or guided_choice", "allowed_token_ids");
	}
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

function isTokenIds(stop: CommonRequest["stop"]): stop is number[] {
	return Array.isArray(stop) && typeof stop[0] === "number";
}

/** With ignore_eos the client's own stop ids are not sent either, as in Dynamo; they are still looked for here. */
function stopConditions(request: CommonRequest, maxTokens: number | null, eosTokenIds: number[]): StopConditions {
	const ownStops = request.ignore_eos === true ? [] : stopTokenIds(request);
	return {
		max_tokens: maxTokens,
		stop: stopStrings(request),
		stop_token_ids: ownStops.length === 0 ? null : ownStops,
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
		top_k: greedy ? null : (request.top_k ?? null),
		min_p: greedy ? null : (request.min_p ?? null),
		use_beam_search: null,
		length_penalty: null,
		seed: request.seed ?? null,
		include_stop_str_in_output: request.include_stop_str_in_output ?? null,
		guided_decoding: guidedDecoding(request),
		...(bias === null || bias === undefined || Object.keys(bias).length === 0 ? {} : { logit_bias: bias }),
	};
}

/** The constraint on the text, from `guided_*` or from `response_format`; null when there is none. */
function guidedDecoding(request: CommonRequest): GuidedDecoding | null {
	const guided: GuidedDecoding = {};
	const format = "response_format" in request ? request.response_format : undefined;
	if (request.guided_json !== null && request.guided_json !== undefined) guided.json = request.guided_json;
	else if (request.guided_regex) guided.regex = request.guided_regex;
	else if (request.guided_choice?.length) guided.choice = [...request.guided_choice];
	else if (request.guided_grammar) guided.grammar = request.guided_grammar;
	else if (format?.type === "json_schema") guided.json = format.json_schema?.schema ?? {};
	else if (format?.type === "json_object") guided.json = { type: "object" };
	else return null;
	if (request.guided_decoding_backend) guided.backend = request.guided_decoding_backend;
	if (request.guided_whitespace_pattern) guided.whitespace_pattern = request.guided_whitespace_pattern;
	return guided;
}

/** Members in the order that Dynamo writes them; absent when unset. */
function routingHints(request: CommonRequest, set: WorkerSet): RoutingHints {
	const { nvext } = request;
	const hints: RoutingHints = {};
	const agent = nvext?.agent_hints ?? undefined;
	const put = <K extends keyof RoutingHints>(key: K, value: RoutingHints[K] | null | undefined): void => {
		if (value !== null && value !== undefined) hints[key] = value;
	};
	put("backend_instance_id", workerId(nvext?.backend_instance_id));
	put("prefill_worker_id", workerId(nvext?.prefill_worker_id));
	put("decode_worker_id", workerId(nvext?.decode_worker_id));
	put("dp_rank", nvext?.dp_rank);
	put("prefill_dp_rank", nvext?.prefill_dp_rank);
	put("expected_output_tokens", agent?.osl);
	put("lora_name", set.card.lora?.name);
	put("cache_salt", nvext?.cache_salt ?? request.cache_salt);
	put("priority_jump", agent?.priority);
	put("priority", agent?.priority);
	put("routing_constraints", nvext?.routing_constraints);
	return hints;
}

function workerId(id: number | bigint | null | undefined): bigint | undefined {
	return id === null || id === undefined ? undefined : normaliseId(id);
}

function extraArgsOf(nvext: NvExt | undefined): Record<string, unknown> | undefined {
	const passed: Record<string, unknown> = {};
	if (nvext?.extra_fields !== null && nvext?.extra_fields !== undefined) passed.extra_fields = nvext.extra_fields;
	if (nvext?.cache_salt !== null && nvext?.cache_salt !== undefined) passed.cache_salt = nvext.cache_salt;
	return Object.keys(passed).length === 0 ? undefined : { nvext: passed };
}
