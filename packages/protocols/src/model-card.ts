// SPDX-License-Identifier: Apache-2.0

/** A file that belongs to a model, identified by its content. */
export interface CheckedFile {
	/** http(s) URL, `hf://repo/file`, `file://` URL or absolute path. */
	path: string;
	/** `blake3:<64 hex>` of the file's bytes. */
	checksum: string;
	/** Bytes. */
	size?: number;
}

export type WorkerType = "aggregated" | "prefill" | "decode" | "encode";
export type ModelInput = "Tokens" | "Text" | "Tensor";

/** What a worker tells routers about itself; every member is optional on the wire. */
export interface ModelRuntimeConfig {
	/** Tokens; wins over the card's own context_length, even when 0. */
	context_length?: number;
	total_kv_blocks?: number | null;
	max_num_seqs?: number | null;
	max_num_batched_tokens?: number | null;
	tool_call_parser?: string | null;
	reasoning_parser?: string | null;
	tool_call_arguments_format?: string;
	structural_tag_mode?: string;
	structural_tag_scope?: string;
	structural_tag_schema?: string;
	exclude_tools_when_tool_choice_none?: boolean;
	data_parallel_start_rank?: number;
	data_parallel_size?: number;
	enable_local_indexer?: boolean;
	kv_event_publishing_enabled?: boolean;
	runtime_data?: Record<string, unknown>;
	enable_eagle?: boolean;
	disaggregated_endpoint?: { bootstrap_host: string; bootstrap_port: number };
	[other: string]: unknown;
}

/** Describes a served model: names, files, limits. `card_json` of a Model record. */
export interface ModelDeploymentCard {
	/** The model's public name. */
	display_name: string;
	/** display_name reduced to a-z 0-9 - _. */
	slug: string;
	source_path?: string;
	model_info?: { hf_config_json: CheckedFile } | null;
	tokenizer?: { hf_tokenizer_json: CheckedFile } | { tik_token_model: CheckedFile } | null;
	prompt_formatter?: Record<string, unknown> | null;
	chat_template_file?: Record<string, unknown> | null;
	gen_config?: { hf_generation_config_json: CheckedFile } | null;
	architectural_max_context_length?: number;
	context_length?: number;
	/** Tokens per KV block. */
	kv_cache_block_size: number;
	migration_limit: number;
	/** Flags joined with ` | `: Chat, Completions, Embedding, ...; "" for prefill workers. */
	model_type: string;
	model_input: ModelInput;
	worker_type?: WorkerType | null;
	/** OR of ANDs of worker types that must be present too. */
	needs?: WorkerType[][];
	runtime_config?: ModelRuntimeConfig;
	media_decoder?: unknown;
	media_fetcher?: unknown;
	extra_files?: CheckedFile[];
	aliases?: string[];
	lora?: { name: string; max_gpu_lora_count?: number } | null;
	[other: string]: unknown;
}
