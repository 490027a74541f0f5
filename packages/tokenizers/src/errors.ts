// SPDX-License-Identifier: Apache-2.0

/** A tokenizer.json that cannot be used: what is wrong with it, and what would work. */
export class TokenizerError extends Error {
	override readonly name: string = "TokenizerError";
}

/** A decoder section of tokenizer.json that cannot be streamed byte-exactly. */
export class UnsupportedDecoderError extends TokenizerError {
	override readonly name = "UnsupportedDecoderError";
	/** Type of the decoder at fault, e.g. `WordPiece`. */
	readonly decoderType: string;

	constructor(decoderType: string, why: string) {
		super(
			`tokenizer.json: decoder ${decoderType} is not supported (${why}); ` +
				"supported are ByteLevel, Metaspace, and sequences of Replace, ByteFallback, Fuse and Strip",
		);
		this.decoderType = decoderType;
	}
}

/** GGUF metadata that does not describe a tokenizer that can be converted. */
export class GgufTokenizerError extends Error {
	override readonly name = "GgufTokenizerError";
}

/** The model has no chat template: chat requests cannot be served, completions can. */
export class MissingChatTemplateError extends Error {
	override readonly name = "MissingChatTemplateError";
	constructor(wanted?: string, available: readonly string[] = []) {
		super(
			wanted === undefined
				? "the model has no chat template: add chat_template to tokenizer_config.json, or a chat_template.jinja " +
						"file, or send a plain prompt to /v1/completions"
				: `the model has no chat template named "${wanted}"; it has: ${available.join(", ")}`,
		);
	}
}

/**
 * Why a chat template gave no prompt.
 * - `syntax`: the template itself cannot be parsed; every chat request of the model fails.
 * - `raised`: the template called `raise_exception`: it refuses these messages.
 * - `render`: the template met a value that it cannot handle.
 * - `input`: the request does not fit the template (a part type, a final message that is not there).
 */
export type TemplateErrorReason = "syntax" | "raised" | "render" | "input";

/** A chat template that failed. `templateMessage` is the template's or the engine's own text. */
export class TemplateError extends Error {
	override readonly name = "TemplateError";
	readonly reason: TemplateErrorReason;
	readonly templateMessage: string;

	constructor(reason: TemplateErrorReason, templateMessage: string, options?: ErrorOptions) {
		super(`${PREFIX[reason]}: ${templateMessage}`, options);
		this.reason = reason;
		this.templateMessage = templateMessage;
	}
}

const PREFIX: Record<TemplateErrorReason, string> = {
	syntax: "the model's chat template cannot be parsed",
	raised: "the model's chat template refused the messages",
	render: "the model's chat template failed on these messages",
	input: "the messages do not fit the model's chat template",
};
