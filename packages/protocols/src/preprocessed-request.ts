// SPDX-License-Identifier: Apache-2.0

/** When generation ends. All members are always sent, null when unset. */
export interface StopConditions {
	/** Most new tokens; null: the worker's default (the rest of the context). */
	max_tokens: number | null;
	/** Stop strings; the frontend matches them, a worker may too. */
	stop: string[] | null;
	stop_token_ids: number[] | null;
	stop_token_ids_visible: number[] | null;
	/** Token ids that end generation and are not shown: the model's EOS ids. */
	stop_token_ids_hidden: number[] | null;
	min_tokens: number | null;
	ignore_eos: boolean | null;
	max_thinking_tokens: number | null;
}

/** A constraint on the shape of the text; exactly one member is set. */
export interface GuidedDecoding {
	json?: unknown;
	regex?: string | null;
	choice?: string[] | null;
	grammar?: string | null;
	backend?: string | null;
	whitespace_pattern?: string | null;
}

/** How tokens are drawn. Floats travel as 32-bit floats in msgpack. All members are always sent, null when unset. */
export interface SamplingOptions {
	n: number | null;
	best_of: number | null;
	presence_penalty: number | null;
	frequency_penalty: number | null;
	repetition_penalty: number | null;
	temperature: number | null;
	top_p: number | null;
	top_k: number | null;
	min_p: number | null;
	use_beam_search: boolean | null;
	length_penalty: number | null;
	seed: number | bigint | null;
	include_stop_str_in_output: boolean | null;
	guided_decoding: GuidedDecoding | null;
	/** Ours: token id (decimal text) to bias. Dynamo 1.6.1 neither sends nor reads it; real workers ignore it. */
	logit_bias?: Record<string, number>;
}

/** What the worker reports beside the tokens. */
export interface OutputOptions {
	/** Completions only, absent when the client did not say: show what ended the text, too. */
	no_stop_trim?: boolean;
	/** Number of top logprobs; 0: only the chosen token's. */
	logprobs: number | null;
	prompt_logprobs: number | null;
	skip_special_tokens: boolean | null;
	formatted_prompt: boolean | null;
	return_tokens_as_token_ids: boolean | null;
}

/** Routing hints and decisions; `{}` in round-robin mode. Worker ids are u64. */
export interface RoutingHints {
	backend_instance_id?: bigint;
	prefill_worker_id?: bigint;
	decode_worker_id?: bigint;
	dp_rank?: number;
	prefill_dp_rank?: number;
	expected_output_tokens?: number;
	lora_name?: string;
	cache_salt?: string;
	priority_jump?: number;
	strict_priority?: number;
	priority?: number;
	allowed_worker_ids?: bigint[];
	routing_constraints?: unknown;
}

/** Result of the prefill leg, handed to the decode leg. */
export interface PrefillResult {
	disaggregated_params: unknown;
	prompt_tokens_details?: { audio_tokens?: number | null; cached_tokens?: number | null };
}

/** Where prefill and decode worker meet when both legs run at once. */
export interface BootstrapInfo {
	bootstrap_host: string;
	bootstrap_port: number;
	/** u64. */
	bootstrap_room: bigint;
	/** UUID text; 16 raw bytes in msgpack. */
	handoff_id?: string;
}

/**
 * The token-level request that a frontend sends to a worker whose model_input is `Tokens`.
 * Field names and presence as Dynamo 1.6.1 writes them; a reader needs only `token_ids`.
 */
export interface PreprocessedRequest {
	model: string;
	/** The prompt, special tokens included. */
	token_ids: number[];
	stop_conditions: StopConditions;
	sampling_options: SamplingOptions;
	output_options: OutputOptions;
	eos_token_ids: number[];
	mdc_sum: string | null;
	annotations: string[];
	routing: RoutingHints;
	router_config_override: Record<string, unknown> | null;
	prefill_result?: PrefillResult;
	bootstrap_info?: BootstrapInfo;
	extra_args?: Record<string, unknown>;
	router?: unknown;
	mm_processor_kwargs?: unknown;
	media_io_kwargs?: unknown;
	request_timestamp_ms?: number;
	/**
	 * Ours: so many tokens at the end of token_ids were generated for this request by a worker that was lost. Dynamo 1.6.1
	 * neither sends nor reads it; real workers ignore it.
	 */
	generated_tokens?: number;
	_HEALTH_CHECK?: boolean;
}
