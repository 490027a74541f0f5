// SPDX-License-Identifier: Apache-2.0
// Requests after parsing: fields that were null are left out, so "given" means "not undefined".

/** A part of a message's content. */
export type ContentPart =
	| { type: "text"; text: string }
	| { type: "refusal"; refusal: string }
	| {
			type: "image_url";
			image_url?: { url: string; detail?: "auto" | "low" | "high" | null; uuid?: string | null } | null;
	  }
	| { type: "video_url"; video_url?: { url: string; detail?: string | null; uuid?: string | null } | null }
	| { type: "audio_url"; audio_url?: { url: string; uuid?: string | null } | null }
	| { type: "input_audio"; input_audio: { data: string; format: "wav" | "mp3" } };

export interface RequestToolCall {
	id: string;
	type?: "function";
	/** `arguments`: JSON text, or the JSON object itself. */
	function: { name: string; arguments: string | Record<string, unknown> };
}

/** An entry of `messages`. Members inside a message may be null, as the client sent them. */
export interface ChatMessage {
	role: "developer" | "system" | "user" | "assistant" | "tool" | "function";
	content?: string | ContentPart[] | null;
	name?: string | null;
	tool_calls?: RequestToolCall[] | null;
	tool_call_id?: string;
	reasoning_content?: string | string[] | null;
	refusal?: string | null;
	function_call?: { name: string; arguments: string | Record<string, unknown> } | null;
	/** Tools that a system message brings itself. */
	tools?: unknown[] | null;
	[other: string]: unknown;
}

export interface ToolDefinition {
	type: "function";
	function: {
		name: string;
		description?: string | null;
		/** A JSON Schema. */
		parameters?: Record<string, unknown> | null;
		strict?: boolean | null;
	};
}

export type ToolChoice = "none" | "auto" | "required" | { type: "function"; function: { name: string } };

export type ResponseFormat =
	| { type: "text" }
	| { type: "json_object" }
	| {
			type: "json_schema";
			json_schema: {
				name: string;
				description?: string | null;
				schema: Record<string, unknown>;
				strict?: boolean | null;
			};
	  };

export interface StreamOptions {
	include_usage?: boolean | null;
	continuous_usage_stats?: boolean | null;
}

/** Hints of an agent harness; members may be null. */
export interface AgentHints {
	priority?: number | null;
	strict_priority?: number | null;
	/** Expected output length, tokens. */
	osl?: number | null;
	speculative_prefill?: boolean | null;
	latency_sensitivity?: number | null;
}

/** NVIDIA's extension object. Worker ids are u64: number or, beyond 2^53, bigint. Members may be null. */
export interface NvExt {
	greed_sampling?: boolean | null;
	use_raw_prompt?: boolean | null;
	annotations?: string[] | null;
	backend_instance_id?: number | bigint | null;
	token_data?: number[] | null;
	max_thinking_tokens?: number | null;
	cache_salt?: string | null;
	extra_fields?: string[] | null;
	metadata_upload?: { url: string } | null;
	prefill_worker_id?: number | bigint | null;
	decode_worker_id?: number | bigint | null;
	dp_rank?: number | null;
	prefill_dp_rank?: number | null;
	agent_hints?: AgentHints | null;
	request_timestamp_ms?: number | null;
	routing_constraints?: { required_taints?: string[]; preferred_taints?: Record<string, number> } | null;
	router?: { ttft_target?: number | null; itl_target?: number | null } | null;
}

/** Fields of both completion routes. */
export interface CommonRequestFields {
	model: string;
	/** Tokens. */
	max_tokens?: number;
	temperature?: number;
	top_p?: number;
	/** -1 and 0: all tokens. */
	top_k?: number;
	min_p?: number;
	frequency_penalty?: number;
	presence_penalty?: number;
	repetition_penalty?: number;
	n?: number;
	/** i64. */
	seed?: number | bigint;
	/** Stop strings, or stop token ids. */
	stop?: string | string[] | number[];
	stop_token_ids?: number[];
	/** Token id (decimal text) to a number from -100 to 100. */
	logit_bias?: Record<string, number>;
	stream?: boolean;
	stream_options?: StreamOptions;
	user?: string;
	metadata?: unknown;
	ignore_eos?: boolean;
	/** Tokens. */
	min_tokens?: number;
	include_stop_str_in_output?: boolean;
	skip_special_tokens?: boolean;
	prompt_logprobs?: number;
	guided_json?: unknown;
	guided_regex?: string;
	guided_grammar?: string;
	guided_choice?: string[];
	guided_decoding_backend?: string;
	guided_whitespace_pattern?: string;
	cache_salt?: string;
	detokenize?: boolean;
	allowed_token_ids?: number[];
	return_tokens_as_token_ids?: boolean;
	nvext?: NvExt;
}

/** `POST /v1/chat/completions`. */
export interface ChatCompletionRequest extends CommonRequestFields {
	messages: ChatMessage[];
	/** Tokens; wins over max_tokens. */
	max_completion_tokens?: number;
	logprobs?: boolean;
	top_logprobs?: number;
	tools?: ToolDefinition[];
	tool_choice?: ToolChoice;
	parallel_tool_calls?: boolean;
	response_format?: ResponseFormat;
	reasoning_effort?: "none" | "minimal" | "low" | "medium" | "high" | "xhigh" | "max";
	service_tier?: string;
	store?: boolean;
	modalities?: ("text" | "audio")[];
	prediction?: unknown;
	audio?: unknown;
	web_search_options?: unknown;
	prompt_cache_key?: string;
	/** Also sent as chat_template_kwargs. */
	chat_template_args?: Record<string, unknown>;
	mm_processor_kwargs?: unknown;
	media_io_kwargs?: unknown;
	thinking?: boolean | { type: "enabled" | "disabled" | "adaptive"; [other: string]: unknown };
	thinking_token_budget?: number;
	/** Absent means true. */
	add_generation_prompt?: boolean;
	continue_final_message?: boolean;
}

/** `POST /v1/completions`. */
export interface CompletionRequest extends CommonRequestFields {
	/** A text, several texts, one prompt in tokens, or several of those. */
	prompt: string | string[] | number[] | number[][];
	/** Base64 of the embeddings; the prompt is then not looked at. */
	prompt_embeds?: string;
	suffix?: string;
	/** Number of top logprobs. */
	logprobs?: number;
	echo?: boolean;
	best_of?: number;
	no_stop_trim?: boolean;
}
