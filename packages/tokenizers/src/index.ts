// SPDX-License-Identifier: Apache-2.0
export { ChatTemplate, type ChatTemplateInput } from "./chat-template.js";
export { type ChatTemplateSources, resolveChatTemplates } from "./chat-template-source.js";
export {
	GgufTokenizerError,
	MissingChatTemplateError,
	TemplateError,
	type TemplateErrorReason,
	TokenizerError,
	UnsupportedDecoderError,
} from "./errors.js";
export type { GgufMetadata } from "./gguf-metadata.js";
export { SUPPORTED_PRE_TOKENIZERS } from "./gguf-pre-tokenizers.js";
export {
	convertGgufTokenizer,
	type GgufConversionOptions,
	type GgufHuggingFaceFiles,
	SUPPORTED_GGUF_TOKENIZER_MODELS,
} from "./gguf-tokenizer.js";
export { IncrementalDetokenizer, type IncrementalDetokenizerOptions } from "./incremental-detokenizer.js";
export type { ChatMessage, ContentPart } from "./message-content.js";
export {
	type PromptKind,
	resolveSpecialTokens,
	type SpecialTokenSource,
	type SpecialTokenSources,
	type SpecialTokens,
	shouldAddSpecialTokens,
} from "./special-tokens.js";
export { StopSequenceMatcher, type StopSequenceOptions, type StopSequenceResult } from "./stop-sequence.js";
export { type AddedToken, type DecodeOptions, type EncodeOptions, Tokenizer } from "./tokenizer.js";
