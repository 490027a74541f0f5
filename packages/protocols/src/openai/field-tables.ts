// SPDX-License-Identifier: Apache-2.0
import {
	functionCallOption,
	functions,
	message,
	prediction,
	responseFormat,
	tool,
	toolChoice,
} from "./message-checks.js";
import {
	anything,
	boolean,
	type Check,
	f32,
	f64,
	i32,
	i64,
	invalidType,
	map,
	option,
	sequence,
	string,
	struct,
	u8,
	u32,
	u64,
	untagged,
	variant,
} from "./serde-check.js";

/**
 * How Dynamo reads a field, which decides the order of errors: `direct` ones while it reads the text (their errors have
 * exact positions and come first), then the fields of OpenAI's own struct, then the `common` extensions. `passed` ones
 * are taken as they are and checked with the validation.
 */
export type FieldGroup = "direct" | "inner" | "common" | "passed";

export interface Field {
	group: FieldGroup;
	check: Check;
	/** The field that this is another name for. */
	aliasOf?: string;
}

export type FieldTable = ReadonlyMap<string, Field>;

const group = (name: FieldGroup, checks: Readonly<Record<string, Check>>): [string, Field][] =>
	Object.entries(checks).map(([field, check]) => [field, { group: name, check }]);

const agentHints = struct(
	"AgentHints",
	{
		priority: option(i32),
		strict_priority: option(u32),
		osl: option(u32),
		speculative_prefill: option(boolean),
		latency_sensitivity: option(f64),
	},
	{ strict: true },
);

/** The extension object; the only place, with its parts, where unknown members are refused while parsing. */
const nvext = struct(
	"NvExt",
	{
		greed_sampling: option(boolean),
		use_raw_prompt: option(boolean),
		annotations: option(sequence(string)),
		backend_instance_id: option(u64),
		token_data: option(sequence(u32)),
		max_thinking_tokens: option(u32),
		cache_salt: option(string),
		extra_fields: option(sequence(string)),
		metadata_upload: option(struct("MetadataUpload", { url: string }, { required: ["url"], strict: true })),
		prefill_worker_id: option(u64),
		decode_worker_id: option(u64),
		dp_rank: option(u32),
		prefill_dp_rank: option(u32),
		agent_hints: option(agentHints),
		request_timestamp_ms: option(f64),
		routing_constraints: option(
			struct("RoutingConstraints", { required_taints: sequence(string), preferred_taints: map(f32) }, { strict: true }),
		),
		router: option(struct("RouterParams", { ttft_target: option(f64), itl_target: option(f64) }, { strict: true })),
	},
	{ strict: true },
);

const streamOptions = struct("ChatCompletionStreamOptions", {
	include_usage: option(boolean),
	continuous_usage_stats: option(boolean),
});

const stop = untagged("Stop", string, sequence(string), sequence(u32));

const COMMON: Readonly<Record<string, Check>> = {
	ignore_eos: option(boolean),
	min_tokens: option(u32),
	top_k: option(i32),
	min_p: option(f32),
	repetition_penalty: option(f32),
	include_stop_str_in_output: option(boolean),
	skip_special_tokens: option(boolean),
	prompt_logprobs: option(u32),
	guided_json: anything,
	guided_regex: option(string),
	guided_grammar: option(string),
	guided_choice: option(sequence(string)),
	guided_decoding_backend: option(string),
	guided_whitespace_pattern: option(string),
	add_generation_prompt: option(boolean),
	continue_final_message: option(boolean),
};

const PASSED: Readonly<Record<string, Check>> = {
	cache_salt: anything,
	stop_token_ids: anything,
	detokenize: anything,
	allowed_token_ids: anything,
};

const chatTemplateArgs = option(map(anything));

const webSearchLocation = struct("WebSearchLocation", {
	country: option(string),
	region: option(string),
	city: option(string),
	timezone: option(string),
});

/** Every field of `POST /v1/chat/completions`; any other is unsupported. */
export const CHAT_FIELDS: FieldTable = new Map<string, Field>([
	...group("direct", {
		nvext: option(nvext),
		chat_template_args: chatTemplateArgs,
		return_tokens_as_token_ids: option(boolean),
		thinking_token_budget: option(u32),
		media_io_kwargs: anything,
		thinking: anything,
	}),
	["chat_template_kwargs", { group: "direct", check: chatTemplateArgs, aliasOf: "chat_template_args" }],
	...group("inner", {
		messages: sequence(message),
		model: string,
		mm_processor_kwargs: anything,
		store: option(boolean),
		reasoning_effort: option(variant("none", "minimal", "low", "medium", "high", "xhigh", "max")),
		metadata: anything,
		frequency_penalty: option(f32),
		logit_bias: option(map(anything)),
		logprobs: option(boolean),
		top_logprobs: option(u8),
		max_tokens: option(u32),
		max_completion_tokens: option(u32),
		n: option(u8),
		modalities: option(sequence(variant("text", "audio"))),
		prediction: option(prediction),
		audio: option(
			struct(
				"ChatCompletionAudio",
				{
					voice: untagged("ChatCompletionAudioVoice", string),
					format: variant("wav", "aac", "mp3", "flac", "opus", "pcm16"),
				},
				{ required: ["voice", "format"] },
			),
		),
		presence_penalty: option(f32),
		response_format: option(responseFormat),
		seed: option(i64),
		service_tier: option(variant("auto", "default", "flex", "scale", "priority", "fast")),
		stop: option(stop),
		stream: option(boolean),
		stream_options: option(streamOptions),
		temperature: option(f32),
		top_p: option(f32),
		tools: option(sequence(tool)),
		tool_choice: option(toolChoice),
		parallel_tool_calls: option(boolean),
		user: option(string),
		web_search_options: option(
			struct("WebSearchOptions", {
				search_context_size: option(variant("low", "medium", "high")),
				user_location: option(
					struct(
						"WebSearchUserLocation",
						{ type: variant("approximate"), approximate: webSearchLocation },
						{ required: ["type", "approximate"] },
					),
				),
			}),
		),
		prompt_cache_key: option(string),
		function_call: option(functionCallOption),
		functions: option(functions),
	}),
	...group("common", COMMON),
	...group("passed", PASSED),
]);

const echo: Check = (value) => {
	if (value !== null && typeof value !== "boolean")
		invalidType(value, "echo parameter to be a boolean (true or false) or null");
};

/** A text, texts, one token array, or token arrays. */
const prompt = untagged("Prompt", string, sequence(string), sequence(u32), sequence(sequence(u32)));

/** Every field of `POST /v1/completions`; any other is unsupported. */
export const COMPLETION_FIELDS: FieldTable = new Map<string, Field>([
	...group("direct", {
		nvext: option(nvext),
		metadata: anything,
		no_stop_trim: option(boolean),
		return_tokens_as_token_ids: option(boolean),
	}),
	...group("inner", {
		model: string,
		prompt,
		prompt_embeds: option(string),
		suffix: option(string),
		max_tokens: option(u32),
		temperature: option(f32),
		top_p: option(f32),
		n: option(u8),
		stream: option(boolean),
		stream_options: option(streamOptions),
		logprobs: option(u8),
		echo,
		stop: option(stop),
		presence_penalty: option(f32),
		frequency_penalty: option(f32),
		best_of: option(u8),
		logit_bias: option(map(anything)),
		user: option(string),
		seed: option(i64),
	}),
	...group("common", COMMON),
	...group("passed", PASSED),
]);
