// SPDX-License-Identifier: Apache-2.0
import { readFile } from "node:fs/promises";
import { basename } from "node:path";
import type { EngineInfo } from "@dynamo-ts/engine";
import {
	type CheckedFile,
	checkedFile,
	type EndpointId,
	type ModelDeploymentCard,
	slugify,
} from "@dynamo-ts/protocols/internal";
import type { SystemServer } from "@dynamo-ts/runtime";
import type { ModelFiles } from "./model-files.js";
import { roleMembers, type WorkerRole } from "./worker-role.js";

export interface CardOptions {
	/** The model's public name. */
	readonly displayName: string;
	/** Hub id or local path. */
	readonly sourcePath: string;
	readonly files: ModelFiles;
	readonly info: EngineInfo;
	/** Tokens of prompt and output together; 0 tells routers that there is no limit. */
	readonly contextLength: number;
	/** Default aggregated. */
	readonly role?: WorkerRole | undefined;
	readonly toolCallParser?: string | undefined;
	readonly reasoningParser?: string | undefined;
	/** The worker tells routers what its cache holds, and they can ask for it. */
	readonly kvEvents?: boolean | undefined;
	/**
	 * Gives the URL that a file is served at. Absent: files are listed under their own paths, and, as Dynamo's worker
	 * has it, without the extra ones (which count in the checksum that all workers of a model must agree on).
	 */
	readonly urlOf?: ((file: string) => string) | undefined;
	/** Where decode workers find out that a prompt is computed. */
	readonly meetingPoint?: { readonly host: string; readonly port: number } | undefined;
	/** How frontends are to route to it, as Dynamo writes that; absent: as they like. */
	readonly routerConfig?: Readonly<Record<string, unknown>> | undefined;
}

/**
 * Makes the card of a worker for chat and completions on tokens, member by member as Dynamo's own worker of the same
 * role writes it.
 * @throws Error when a file cannot be read.
 */
export async function buildCard(options: CardOptions): Promise<ModelDeploymentCard> {
	const { files, info } = options;
	const role = roleMembers(options.role ?? "aggregated");
	const { extra_files, ...slots } = await checkedModelFiles(files, options.urlOf);
	return {
		display_name: options.displayName,
		slug: slugify(options.displayName),
		source_path: options.sourcePath,
		...slots,
		architectural_max_context_length: await architecturalMax(files.config, info.maxModelLen),
		context_length: options.contextLength,
		kv_cache_block_size: info.blockSize,
		migration_limit: 0,
		model_type: role.model_type,
		model_input: "Tokens",
		worker_type: role.worker_type,
		needs: role.needs,
		runtime_config: {
			context_length: options.contextLength,
			total_kv_blocks: info.totalBlocks,
			max_num_seqs: info.maxNumSeqs,
			max_num_batched_tokens: info.maxNumBatchedTokens,
			tool_call_parser: options.toolCallParser ?? null,
			reasoning_parser: options.reasoningParser ?? null,
			tool_call_arguments_format: "json_string",
			structural_tag_mode: "off",
			structural_tag_scope: "auto",
			structural_tag_schema: "auto",
			exclude_tools_when_tool_choice_none: true,
			data_parallel_start_rank: 0,
			data_parallel_size: 1,
			enable_local_indexer: options.kvEvents === true,
			kv_event_publishing_enabled: options.kvEvents === true,
			runtime_data: {
				device: info.device,
				...(info.deviceNote === undefined ? {} : { device_note: info.deviceNote }),
				quantization: info.quantization,
			},
			...(options.meetingPoint === undefined
				? {}
				: {
						disaggregated_endpoint: {
							bootstrap_host: options.meetingPoint.host,
							bootstrap_port: options.meetingPoint.port,
						},
					}),
			enable_eagle: false,
		},
		media_decoder: null,
		media_fetcher: null,
		...(options.routerConfig === undefined ? {} : { router_config: options.routerConfig }),
		...(extra_files === undefined ? {} : { extra_files }),
	};
}

/**
 * The members of a card that refer to files.
 * @param urlOf see {@link CardOptions.urlOf}.
 * @throws Error when a file cannot be read.
 */
export async function checkedModelFiles(
	files: ModelFiles,
	urlOf: CardOptions["urlOf"],
): Promise<
	Pick<
		ModelDeploymentCard,
		"model_info" | "tokenizer" | "prompt_formatter" | "chat_template_file" | "gen_config" | "extra_files"
	>
> {
	const checked = async (file: string): Promise<CheckedFile> =>
		checkedFile(urlOf?.(file) ?? file, await readFile(file));
	const [config, tokenizer, tokenizerConfig, generationConfig, chatTemplate, ...extra] = await Promise.all([
		checked(files.config),
		checked(files.tokenizer),
		files.tokenizerConfig === undefined ? undefined : checked(files.tokenizerConfig),
		files.generationConfig === undefined ? undefined : checked(files.generationConfig),
		files.chatTemplate === undefined ? undefined : checked(files.chatTemplate.path),
		...(urlOf === undefined ? [] : files.extra.map(checked)),
	]);
	return {
		model_info: { hf_config_json: config },
		tokenizer: { hf_tokenizer_json: tokenizer },
		...(tokenizerConfig === undefined ? {} : { prompt_formatter: { hf_tokenizer_config_json: tokenizerConfig } }),
		...(chatTemplate === undefined ? {} : { chat_template_file: chatTemplateSlot(files, chatTemplate) }),
		...(generationConfig === undefined ? {} : { gen_config: { hf_generation_config_json: generationConfig } }),
		...(urlOf === undefined ? {} : { extra_files: extra }),
	};
}

function chatTemplateSlot(files: ModelFiles, file: CheckedFile): Record<string, unknown> {
	return files.chatTemplate?.kind === "json"
		? { hf_chat_template_json: { is_custom: false, file } }
		: { hf_chat_template: { is_custom: false, file } };
}

/** `max_position_embeddings` of config.json, also of a text model inside it. */
async function architecturalMax(configPath: string, fallback: number): Promise<number> {
	const config = JSON.parse(await readFile(configPath, "utf8")) as Record<string, unknown>;
	const text = config.text_config as Record<string, unknown> | undefined;
	const value = config.max_position_embeddings ?? text?.max_position_embeddings;
	return typeof value === "number" && Number.isInteger(value) && value > 0 ? value : fallback;
}

/** Serves a model's files from the worker's own system server, and gives the URL of each. */
export function hostModelFiles(
	server: SystemServer,
	id: EndpointId,
	displayName: string,
): { urlOf(file: string): string; remove(): void } {
	const paths: string[] = [];
	return {
		urlOf(file) {
			const path = [id.namespace, id.component, id.name, slugify(displayName), "_base", basename(file)].join("/");
			paths.push(path);
			return server.addMetadataFile(path, file);
		},
		remove() {
			for (const path of paths) server.removeMetadataFile(path);
		},
	};
}
