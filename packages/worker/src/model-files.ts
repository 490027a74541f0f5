// SPDX-License-Identifier: Apache-2.0
// The files of a model that frontends read: config, tokenizer, chat template. A GGUF file holds all of it in its
// metadata; it is written out once as the files that Hugging Face models have, so that any frontend can use it.
import { randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, open, readdir, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { blake3Hex, DynamoError } from "@dynamo-ts/protocols/internal";
import type { SamplingDefaults } from "./generate-request.js";

/** Absolute paths of the files that go into a model card. */
export interface ModelFiles {
	/** config.json */
	readonly config: string;
	/** tokenizer.json */
	readonly tokenizer: string;
	/** tokenizer_config.json */
	readonly tokenizerConfig: string | undefined;
	/** generation_config.json */
	readonly generationConfig: string | undefined;
	/** chat_template.jinja or chat_template.json */
	readonly chatTemplate: { readonly kind: "jinja" | "json"; readonly path: string } | undefined;
	/** What else lies beside them, apart from weights: special_tokens_map.json, added_tokens.json, vocab.json ... */
	readonly extra: readonly string[];
}

/** Changes when the files made from the same GGUF change. */
const CONVERTER_VERSION = 1;
/** The metadata of every known GGUF file ends before this; what follows are weights. */
const IDENTITY_BYTES = 16 * 1024 * 1024;

/**
 * Finds a model's files.
 * @param model a folder in Hugging Face form or of onnxruntime-genai, or a .gguf file.
 * @param cacheDir where files made from GGUF files are kept.
 * @throws DynamoError `NotFound` naming the missing file; errors of the GGUF reader and tokenizer converter.
 */
export async function findModelFiles(
	model: { readonly kind: "folder" | "gguf"; readonly path: string },
	cacheDir: string,
): Promise<ModelFiles> {
	if (model.kind === "gguf") return filesInFolder(await convertGguf(model.path, cacheDir));
	const imported = join(model.path, GENAI_CONFIG);
	const isImported = !existsSync(join(model.path, "config.json")) && existsSync(imported);
	return filesInFolder(model.path, isImported ? await convertGenaiConfig(imported, cacheDir) : undefined);
}

/** As Dynamo's worker has it: weights, documentation and pictures are no use to a frontend. */
const NOT_FOR_FRONTENDS =
	/^\.|\.(md|bin|safetensors|gguf|pt|pth|h5|msgpack|ckpt|onnx|onnx_data|onnx\.data|npz|png|jpe?g|gif|webp|svg)$/i;
/** A larger file is a weight under another name. */
const MAX_EXTRA_BYTES = 64 * 1024 * 1024;

async function extraFiles(folder: string, taken: ReadonlySet<string | undefined>): Promise<string[]> {
	const names = (await readdir(folder)).filter((name) => !NOT_FOR_FRONTENDS.test(name)).sort();
	const extra: string[] = [];
	for (const path of names.map((name) => join(folder, name))) {
		if (taken.has(path)) continue;
		const info = await stat(path).catch(() => undefined);
		if (info?.isFile() && info.size <= MAX_EXTRA_BYTES) extra.push(path);
	}
	return extra;
}

/** @param config stands in for the folder's config.json. */
async function filesInFolder(folder: string, config?: string): Promise<ModelFiles> {
	const optional = (name: string): string | undefined => {
		const path = join(folder, name);
		return existsSync(path) ? path : undefined;
	};
	const required = (name: string): string => {
		const path = optional(name);
		if (path !== undefined) return path;
		const message = `${folder} has no ${name}; a model folder needs config.json and tokenizer.json`;
		throw new DynamoError("NotFound", message, { publicMessage: message });
	};
	const jinja = optional("chat_template.jinja");
	const json = optional("chat_template.json");
	const files: Omit<ModelFiles, "extra"> = {
		config: config ?? required("config.json"),
		tokenizer: required("tokenizer.json"),
		tokenizerConfig: optional("tokenizer_config.json"),
		generationConfig: optional("generation_config.json"),
		chatTemplate:
			jinja !== undefined
				? { kind: "jinja", path: jinja }
				: json !== undefined
					? { kind: "json", path: json }
					: undefined,
	};
	const slots = [
		files.config,
		files.tokenizer,
		files.tokenizerConfig,
		files.generationConfig,
		files.chatTemplate?.path,
	];
	return { ...files, extra: await extraFiles(folder, new Set(slots)) };
}

async function convertGguf(path: string, cacheDir: string): Promise<string> {
	const folder = join(cacheDir, await ggufIdentity(path));
	if (existsSync(folder)) return folder;
	const [{ describeModel }, { convertGgufTokenizer }] = await Promise.all([
		import("@dynamo-ts/engine/internal"),
		import("@dynamo-ts/tokenizers"),
	]);
	const { gguf, config } = describeModel(path);
	if (gguf === undefined) {
		const message = `${path} is not a GGUF file`;
		throw new DynamoError("InvalidArgument", message, { publicMessage: message });
	}
	const files = convertGgufTokenizer(gguf, { tieWordEmbeddings: config.tieWordEmbeddings });
	if (files.config === undefined) {
		const message = `${path}: there is no config.json for its architecture`;
		throw new DynamoError("InvalidArgument", message, { publicMessage: message });
	}
	await writeFolder(folder, {
		"config.json": files.config,
		"tokenizer.json": files.tokenizerJson,
		"tokenizer_config.json": files.tokenizerConfig,
		"generation_config.json": files.generationConfig,
	});
	return folder;
}

/** The file that folders of onnxruntime-genai have in place of config.json. */
const GENAI_CONFIG = "genai_config.json";

/** Writes a config.json with what a genai_config.json says of the architecture. @returns its path. */
async function convertGenaiConfig(path: string, cacheDir: string): Promise<string> {
	const content = await readFile(path);
	const folder = join(cacheDir, blake3Hex(Buffer.concat([Buffer.from("genai "), content])).slice(0, 32));
	const config = join(folder, "config.json");
	if (existsSync(config)) return config;
	let model: Record<string, unknown>;
	try {
		model = (JSON.parse(content.toString("utf8")) as { model: Record<string, unknown> }).model;
	} catch (cause) {
		throw new DynamoError("InvalidArgument", `${path} cannot be read as JSON`, { cause });
	}
	const decoder = (model?.decoder ?? {}) as Record<string, unknown>;
	const json = {
		model_type: model?.type,
		vocab_size: model?.vocab_size,
		max_position_embeddings: model?.context_length,
		hidden_size: decoder.hidden_size,
		num_hidden_layers: decoder.num_hidden_layers,
		num_attention_heads: decoder.num_attention_heads,
		num_key_value_heads: decoder.num_key_value_heads,
		head_dim: decoder.head_size,
		bos_token_id: model?.bos_token_id,
		eos_token_id: model?.eos_token_id,
		pad_token_id: model?.pad_token_id,
	};
	await writeFolder(folder, { "config.json": JSON.stringify(json, null, 2) });
	return config;
}

/** Writes files aside and renames the folder as a whole: nobody ever sees half of them. */
async function writeFolder(folder: string, files: Readonly<Record<string, string>>): Promise<void> {
	const temporary = `${folder}.${randomBytes(6).toString("hex")}.tmp`;
	await mkdir(temporary, { recursive: true });
	try {
		await Promise.all(Object.entries(files).map(([name, text]) => writeFile(join(temporary, name), text)));
		await rename(temporary, folder);
	} catch (error) {
		await rm(temporary, { recursive: true, force: true });
		// Another process was quicker and made the same.
		if (!existsSync(folder)) throw error;
	}
}

/** Names the content of a GGUF file's metadata, without reading its weights. */
async function ggufIdentity(path: string): Promise<string> {
	const file = await open(path, "r");
	try {
		const { size } = await file.stat();
		const head = Buffer.alloc(Math.min(size, IDENTITY_BYTES));
		let filled = 0;
		while (filled < head.length) {
			const { bytesRead } = await file.read(head, filled, head.length - filled, filled);
			if (bytesRead === 0) break;
			filled += bytesRead;
		}
		const facts = Buffer.from(`gguf ${CONVERTER_VERSION} ${size} `);
		return blake3Hex(Buffer.concat([facts, head.subarray(0, filled)])).slice(0, 32);
	} finally {
		await file.close();
	}
}

/**
 * The sampling values that a generation_config.json recommends; values that make no sense are left out.
 * @throws DynamoError `InvalidArgument` when the file is no JSON object.
 */
export async function readSamplingDefaults(path: string | undefined): Promise<SamplingDefaults> {
	if (path === undefined) return {};
	let parsed: unknown;
	try {
		parsed = JSON.parse(await readFile(path, "utf8"));
	} catch (cause) {
		throw new DynamoError("InvalidArgument", `${path} cannot be read as JSON`, { cause });
	}
	const fields = (typeof parsed === "object" && parsed !== null ? parsed : {}) as Record<string, unknown>;
	const number = (name: string, low: number, high: number): number | undefined => {
		const value = fields[name];
		return typeof value === "number" && value >= low && value <= high ? value : undefined;
	};
	const topK = number("top_k", 1, 1_000_000);
	const found = {
		temperature: number("temperature", 0, 100),
		topP: number("top_p", Number.MIN_VALUE, 1),
		topK: topK === undefined || !Number.isInteger(topK) ? undefined : topK,
		minP: number("min_p", 0, 1),
		repetitionPenalty: number("repetition_penalty", Number.MIN_VALUE, 1000),
	};
	return Object.fromEntries(Object.entries(found).filter(([, value]) => value !== undefined));
}
