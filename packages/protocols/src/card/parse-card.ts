// SPDX-License-Identifier: Apache-2.0
import { FieldReader } from "../field-reader.js";
import { isU64 } from "../json.js";
import type { CheckedFile, ModelDeploymentCard } from "../model-card.js";
import { isChecksum } from "./checksum.js";
import { parseModelType } from "./model-type.js";
import { isSlug } from "./slugify.js";

const WORKER_TYPES = ["prefill", "decode", "encode", "aggregated"] as const;

/** Members of runtime_config that Dynamo types, apart from the words below. Nullable ones take null. */
const RUNTIME_MEMBERS = {
	context_length: { type: "u32", nullable: true },
	total_kv_blocks: { type: "u64", nullable: true },
	max_num_seqs: { type: "u64", nullable: true },
	max_num_batched_tokens: { type: "u64", nullable: true },
	tool_call_parser: { type: "string", nullable: true },
	reasoning_parser: { type: "string", nullable: true },
	exclude_tools_when_tool_choice_none: { type: "boolean", nullable: false },
	data_parallel_start_rank: { type: "u32", nullable: false },
	data_parallel_size: { type: "u32", nullable: false },
	enable_local_indexer: { type: "boolean", nullable: false },
	kv_event_publishing_enabled: { type: "boolean", nullable: true },
	enable_eagle: { type: "boolean", nullable: false },
} as const;

const RUNTIME_WORDS = {
	tool_call_arguments_format: ["json_string", "json_object"],
	structural_tag_mode: ["off", "on"],
	structural_tag_scope: ["auto", "always"],
	structural_tag_schema: ["auto", "strict"],
} as const;

/**
 * @throws DynamoError InvalidArgument when path or checksum is missing, the checksum is not `blake3:` and 64 lowercase
 * hex digits, or the size is no u64.
 */
export function parseCheckedFile(value: unknown, where: string): CheckedFile {
	const file = new FieldReader(value, where);
	file.string("path");
	if (!isChecksum(file.string("checksum"))) file.fail("checksum must be `blake3:` and 64 lowercase hex digits");
	if (file.has("size") && !isU64(file.value.size)) file.fail("size must be a number of bytes");
	return file.value as unknown as CheckedFile;
}

/** A slot `{"<kind>": {...}}` with one of the known kinds; the slot itself may be absent or null. */
function checkSlot(card: FieldReader, name: string, kinds: readonly string[]): void {
	if (!card.has(name)) return;
	const slot = card.object(name);
	const [kind, ...others] = Object.keys(slot.value);
	if (kind === undefined || others.length > 0 || !kinds.includes(kind)) {
		slot.fail(`must have exactly one member, one of ${kinds.join(", ")}`);
	}
	const where = `model card: ${name}: ${kind}`;
	// hf_chat_template wraps its file: {"is_custom": ..., "file": {...}}.
	const file = kind === "hf_chat_template" ? slot.object(kind).value.file : slot.value[kind as string];
	parseCheckedFile(file, where);
}

function checkNeeds(card: FieldReader): void {
	const needs = card.value.needs;
	if (needs === undefined) return;
	const known = (type: unknown): boolean => WORKER_TYPES.includes(type as (typeof WORKER_TYPES)[number]);
	if (!Array.isArray(needs) || !needs.every((all) => Array.isArray(all) && all.every(known))) {
		card.fail(`needs must be an array of arrays of ${WORKER_TYPES.join(", ")}`);
	}
}

function checkRuntimeConfig(card: FieldReader): void {
	if (card.value.runtime_config === undefined) return;
	const config = card.object("runtime_config");
	for (const [name, { type, nullable }] of Object.entries(RUNTIME_MEMBERS)) {
		if (config.value[name] === undefined || (nullable && config.value[name] === null)) continue;
		switch (type) {
			case "u32":
				config.u32(name);
				break;
			case "u64":
				config.u64(name);
				break;
			case "string":
				config.string(name);
				break;
			case "boolean":
				config.boolean(name);
		}
	}
	for (const [name, words] of Object.entries(RUNTIME_WORDS)) {
		if (config.value[name] !== undefined) config.word(name, words);
	}
	if (config.value.runtime_data !== undefined) config.object("runtime_data");
	if (config.has("disaggregated_endpoint")) {
		const endpoint = config.object("disaggregated_endpoint");
		endpoint.optionalString("bootstrap_host");
		const port = endpoint.optionalU32("bootstrap_port");
		if (port !== undefined && port > 65_535) endpoint.fail("bootstrap_port must be at most 65535");
	}
}

/**
 * Checks a card as Dynamo 1.6.1 does: unknown members pass, missing or mistyped known ones do not. The card is returned
 * as it came; nothing is filled in, for a card's checksum depends on what is there.
 *
 * @throws DynamoError InvalidArgument that names the member at fault.
 */
export function parseModelCard(value: unknown): ModelDeploymentCard {
	const card = new FieldReader(value, "model card");
	card.string("display_name");
	if (!isSlug(card.string("slug"))) card.fail("slug may have only a-z, 0-9, - and _");
	card.optionalString("source_path");
	card.u32("kv_cache_block_size");
	card.u32("migration_limit");
	card.optionalU32("context_length");
	card.optionalU32("architectural_max_context_length");
	const modelType = card.string("model_type");
	if (parseModelType(modelType) === undefined) card.fail(`model_type ${JSON.stringify(modelType)} has an unknown flag`);
	card.word("model_input", ["Tokens", "Text", "Tensor"]);
	const workerType = card.optionalWord("worker_type", WORKER_TYPES);
	if (workerType === "prefill" && card.value.model_input !== "Tokens")
		card.fail("a prefill worker needs model_input Tokens");
	checkNeeds(card);
	checkSlot(card, "model_info", ["hf_config_json"]);
	checkSlot(card, "tokenizer", ["hf_tokenizer_json", "tik_token_model"]);
	checkSlot(card, "prompt_formatter", ["hf_tokenizer_config_json", "hf_chat_template", "hf_chat_template_json"]);
	checkSlot(card, "chat_template_file", ["hf_tokenizer_config_json", "hf_chat_template", "hf_chat_template_json"]);
	checkSlot(card, "gen_config", ["hf_generation_config_json"]);
	if (card.value.extra_files !== undefined) {
		const files = card.value.extra_files;
		if (!Array.isArray(files)) return card.fail("extra_files must be an array");
		for (const [i, file] of files.entries()) parseCheckedFile(file, `model card: extra_files[${i}]`);
	}
	if (card.value.aliases !== undefined) card.strings("aliases");
	if (card.has("lora")) card.object("lora").string("name");
	checkRuntimeConfig(card);
	return card.value as ModelDeploymentCard;
}

/** Tokens that a prompt and its answer may have together: runtime_config's, even when 0, else the model's own, else 0. */
export function effectiveContextLength(card: ModelDeploymentCard): number {
	return card.runtime_config?.context_length ?? card.architectural_max_context_length ?? card.context_length ?? 0;
}
