// SPDX-License-Identifier: Apache-2.0
import { isJsonObject, stringifyJson } from "../json.js";
import type { CheckedFile, ModelDeploymentCard, WorkerType } from "../model-card.js";
import { blake3Bytes, blake3Hex } from "./checksum.js";
import { effectiveContextLength } from "./parse-card.js";

const WORKER_TYPE_BYTE: Readonly<Record<WorkerType, number>> = { prefill: 1, decode: 2, encode: 3, aggregated: 4 };

function u32be(value: number): Buffer {
	const bytes = Buffer.allocUnsafe(4);
	bytes.writeUInt32BE(value, 0);
	return bytes;
}

/** The checksum text in a slot such as `{"hf_config_json":{...}}` or `{"hf_chat_template":{"file":{...}}}`. */
function slotChecksum(slot: unknown): string | undefined {
	if (!isJsonObject(slot)) return undefined;
	const content = Object.values(slot)[0];
	if (!isJsonObject(content)) return undefined;
	const file = isJsonObject(content.file) ? content.file : content;
	return typeof file.checksum === "string" ? file.checksum : undefined;
}

function extraFileParts(files: readonly CheckedFile[]): Buffer[] {
	return files
		.map((file) => ({ name: baseName(file.path), hex: file.checksum.slice(file.checksum.indexOf(":") + 1) }))
		.sort((a, b) => Buffer.compare(Buffer.from(a.name), Buffer.from(b.name)) || (a.hex < b.hex ? -1 : 1))
		.map(({ name, hex }) => Buffer.from(`${name}\0${hex}`, "utf8"));
}

function baseName(path: string): string {
	return path.slice(path.lastIndexOf("/") + 1);
}

/**
 * The sum by which Dynamo groups workers of one model: BLAKE3 hex over name, source, the files' checksums, context length
 * (tokens), block size (tokens), worker type, needs and aliases. All workers of a set must have the same one; it is also
 * sent as `mdc_sum` with each request. Neither paths nor the rest of runtime_config nor model_type go into it.
 */
export function mdcsum(card: ModelDeploymentCard): string {
	const parts: (string | Buffer)[] = [card.display_name];
	if (card.source_path) parts.push(card.source_path);
	for (const slot of [
		card.model_info,
		card.tokenizer,
		card.prompt_formatter,
		card.chat_template_file,
		card.gen_config,
	]) {
		const checksum = slotChecksum(slot);
		if (checksum !== undefined) parts.push(checksum);
	}
	parts.push(...extraFileParts(card.extra_files ?? []));
	parts.push(u32be(effectiveContextLength(card)), u32be(card.kv_cache_block_size));
	parts.push(Buffer.of(card.worker_type ? WORKER_TYPE_BYTE[card.worker_type] : 0));
	const needs = card.needs ?? [];
	parts.push(u32be(needs.length));
	for (const all of needs) parts.push(u32be(all.length), Buffer.from(all.map((type) => WORKER_TYPE_BYTE[type])));
	if (isJsonObject(card.router_config)) parts.push(blake3Bytes(Buffer.from(stringifyJson(card.router_config), "utf8")));
	const aliases = card.aliases ?? [];
	if (aliases.length > 0) {
		parts.push(u32be(aliases.length));
		for (const alias of aliases) parts.push(u32be(Buffer.byteLength(alias)), alias);
	}
	return blake3Hex(Buffer.concat(parts.map((part) => (typeof part === "string" ? Buffer.from(part, "utf8") : part))));
}
