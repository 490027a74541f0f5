// SPDX-License-Identifier: Apache-2.0
import { basename } from "node:path";
import { type CheckedFile, DynamoError, isJsonObject, type ModelDeploymentCard } from "@dynamo-ts/protocols/internal";
import { ChatTemplate, resolveSpecialTokens, type SpecialTokens, Tokenizer } from "@dynamo-ts/tokenizers";
import type { ModelFiles } from "./model-files.js";

/** What is needed to turn requests into tokens and tokens into text. */
export interface ModelMaterials {
	readonly tokenizer: Tokenizer;
	/** Absent when the model has none or it cannot be used; then {@link chatProblem} says why. */
	readonly chatTemplate: ChatTemplate | undefined;
	readonly chatProblem: Error | undefined;
	readonly special: SpecialTokens;
}

interface Slots {
	tokenizer: CheckedFile;
	config: CheckedFile | undefined;
	generationConfig: CheckedFile | undefined;
	tokenizerConfig: CheckedFile | undefined;
	chatTemplateJinja: CheckedFile | undefined;
	chatTemplateJson: CheckedFile | undefined;
	specialTokensMap: CheckedFile | undefined;
}

/**
 * Fetches a card's files and makes the tokenizer and the chat template from them.
 * @throws DynamoError when a file is missing or wrong, TokenizerError when the tokenizer cannot be used.
 */
export async function loadMaterials(
	card: ModelDeploymentCard,
	files: ModelFiles,
	signal: AbortSignal,
): Promise<ModelMaterials> {
	const slots = readSlots(card);
	const [tokenizerBytes, config, generationConfig, tokenizerConfig, jinja, templateJson, specialTokensMap] =
		await Promise.all([
			files.read(slots.tokenizer, signal),
			readJson(slots.config, files, signal),
			readJson(slots.generationConfig, files, signal),
			readJson(slots.tokenizerConfig, files, signal),
			readText(slots.chatTemplateJinja, files, signal),
			readText(slots.chatTemplateJson, files, signal),
			readJson(slots.specialTokensMap, files, signal),
		]);
	const tokenizer = Tokenizer.fromJson(tokenizerBytes);
	const special = resolveSpecialTokens({ generationConfig, config, tokenizerConfig, specialTokensMap, tokenizer });
	let chatTemplate: ChatTemplate | undefined;
	let chatProblem: Error | undefined;
	try {
		chatTemplate = new ChatTemplate(
			{ tokenizerConfig, chatTemplateJinja: jinja, chatTemplateJson: templateJson },
			special.variables,
		);
	} catch (error) {
		// Completions work without a template, so this concerns chat requests only.
		chatProblem = error as Error;
	}
	return { tokenizer, chatTemplate, chatProblem, special };
}

function readSlots(card: ModelDeploymentCard): Slots {
	const tokenizer = fileOf(card.tokenizer, "hf_tokenizer_json");
	if (tokenizer === undefined) {
		throw new DynamoError(
			"InvalidArgument",
			`the card of ${card.display_name} has no hf_tokenizer_json: models with another kind of tokenizer cannot be served`,
		);
	}
	const extra = (name: string): CheckedFile | undefined =>
		card.extra_files?.find((file) => basename(file.path) === name);
	// A template in a slot of its own replaces the one of the prompt formatter.
	const slot = (kind: string): CheckedFile | undefined =>
		fileOf(card.chat_template_file, kind) ?? fileOf(card.prompt_formatter, kind);
	return {
		tokenizer,
		config: fileOf(card.model_info, "hf_config_json"),
		generationConfig: fileOf(card.gen_config, "hf_generation_config_json"),
		tokenizerConfig: slot("hf_tokenizer_config_json"),
		chatTemplateJinja: slot("hf_chat_template") ?? extra("chat_template.jinja"),
		chatTemplateJson: slot("hf_chat_template_json") ?? extra("chat_template.json"),
		specialTokensMap: extra("special_tokens_map.json"),
	};
}

/** The file in a slot `{"<kind>": {...}}`; hf_chat_template wraps it as `{"is_custom": ..., "file": {...}}`. */
function fileOf(slot: unknown, kind: string): CheckedFile | undefined {
	if (!isJsonObject(slot) || !isJsonObject(slot[kind])) return undefined;
	const content = slot[kind];
	return (isJsonObject(content.file) ? content.file : content) as unknown as CheckedFile;
}

async function readText(
	file: CheckedFile | undefined,
	files: ModelFiles,
	signal: AbortSignal,
): Promise<string | undefined> {
	return file === undefined ? undefined : (await files.read(file, signal)).toString("utf8");
}

async function readJson(
	file: CheckedFile | undefined,
	files: ModelFiles,
	signal: AbortSignal,
): Promise<object | undefined> {
	const text = await readText(file, files, signal);
	if (file === undefined || text === undefined) return undefined;
	let value: unknown;
	try {
		value = JSON.parse(text);
	} catch (error) {
		throw new DynamoError("InvalidArgument", `${file.path} is not JSON: ${(error as Error).message}`);
	}
	if (!isJsonObject(value)) throw new DynamoError("InvalidArgument", `${file.path} does not hold a JSON object`);
	return value;
}
