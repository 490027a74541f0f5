// SPDX-License-Identifier: Apache-2.0
import { isUtf8 } from "node:buffer";
import { byteLevelBytes } from "./byte-level.js";
import { UnsupportedDecoderError } from "./errors.js";

/** How a token becomes text; from the `decoder` section of tokenizer.json. */
export interface DecoderPlan {
	/** Where raw bytes come from: byte-level alphabet, `<0xXX>` tokens, or nowhere. */
	bytes: "byte-level" | "byte-fallback" | "none";
	/** Text of a token that is not a byte; `first`: no token came before it. */
	piece(token: string, first: boolean): string;
	/** True where `piece` depends on `first`. */
	firstDiffers: boolean;
	/** Rewrites characters that were put together from bytes (a Replace that stands after ByteFallback). */
	afterBytes: ((text: string) => string) | undefined;
	/** Leading characters to drop from the whole text: up to `count` times `content`. */
	strip: { content: string; count: number } | undefined;
}

type Json = Record<string, unknown>;
type PieceStep = (piece: string, first: boolean) => string;

/**
 * Reads the decoder section of tokenizer.json (null: tokens joined by one space).
 *
 * @throws UnsupportedDecoderError for decoders whose text for a token depends on later tokens
 */
export function planDecoder(decoder: unknown): DecoderPlan {
	if (decoder === null || decoder === undefined) {
		return {
			bytes: "none",
			piece: (token, first) => (first ? token : ` ${token}`),
			firstDiffers: true,
			afterBytes: undefined,
			strip: undefined,
		};
	}
	const steps: PieceStep[] = [];
	const replaces: ((text: string) => string)[] = [];
	let bytes: DecoderPlan["bytes"] = "none";
	let fused = false;
	let firstDiffers = false;
	let strip: DecoderPlan["strip"];

	for (const step of flatten(decoder)) {
		const type = String(step.type);
		switch (type) {
			case "Fuse":
				fused = true;
				break;
			case "ByteLevel":
				if (bytes !== "none" || fused || firstDiffers)
					throw new UnsupportedDecoderError(type, "it follows ByteFallback, Fuse or Metaspace");
				bytes = "byte-level";
				fused = true;
				break;
			case "ByteFallback":
				if (bytes !== "none" || fused) throw new UnsupportedDecoderError(type, "it follows ByteLevel or Fuse");
				bytes = "byte-fallback";
				break;
			case "Replace": {
				const { replace, single } = readReplace(step);
				if (bytes === "none" && !fused) steps.push(replace);
				else if (single && bytes !== "byte-level") {
					// One character for a string: the same whether done per token or on the whole text.
					steps.push(replace);
					replaces.push(replace);
				} else throw new UnsupportedDecoderError(type, "a pattern of several characters after the tokens are joined");
				break;
			}
			case "Strip": {
				const content = String(step.content ?? " ");
				const start = Number(step.start ?? 0);
				const stop = Number(step.stop ?? 0);
				if (fused) {
					if (stop > 0) throw new UnsupportedDecoderError(type, "it strips the end of the text");
					if (strip !== undefined) throw new UnsupportedDecoderError(type, "there are two of them");
					if (start > 0) strip = { content, count: start };
				} else if (bytes === "none") steps.push((piece) => stripPiece(piece, content, start, stop));
				else throw new UnsupportedDecoderError(type, "it stands between ByteFallback and Fuse");
				break;
			}
			case "Metaspace": {
				if (fused || bytes !== "none") throw new UnsupportedDecoderError(type, "it follows ByteFallback or Fuse");
				const mark = String(step.replacement ?? "▁");
				const scheme = step.prepend_scheme ?? (step.add_prefix_space === false ? "never" : "always");
				const dropFirst = scheme !== "never";
				firstDiffers ||= dropFirst;
				steps.push((piece, first) => piece.replaceAll(mark, first && dropFirst ? "" : " "));
				break;
			}
			default:
				throw new UnsupportedDecoderError(type, "its text for a token depends on the tokens after it");
		}
	}
	return {
		bytes,
		piece: (token, first) => {
			let piece = token;
			for (const step of steps) piece = step(piece, first);
			return piece;
		},
		firstDiffers,
		afterBytes: replaces.length === 0 ? undefined : (text) => replaces.reduce((t, replace) => replace(t), text),
		strip,
	};
}

function flatten(decoder: unknown): Json[] {
	const node = decoder as Json;
	if (node.type !== "Sequence") return [node];
	return (Array.isArray(node.decoders) ? node.decoders : []).flatMap(flatten);
}

function readReplace(step: Json): { replace: (text: string) => string; single: boolean } {
	const pattern = step.pattern as { String?: string; Regex?: string } | string | undefined;
	const content = String(step.content ?? "");
	const literal = typeof pattern === "string" ? pattern : pattern?.String;
	if (literal !== undefined) {
		return {
			replace: (text) => (text.includes(literal) ? text.replaceAll(literal, () => content) : text),
			single: [...literal].length === 1,
		};
	}
	try {
		const regex = new RegExp((pattern as { Regex: string }).Regex, "gu");
		return { replace: (text) => text.replace(regex, () => content), single: false };
	} catch (error) {
		throw new UnsupportedDecoderError("Replace", `regular expression: ${(error as Error).message}`);
	}
}

function stripPiece(piece: string, content: string, start: number, stop: number): string {
	const chars = [...piece];
	let from = 0;
	while (from < start && from < chars.length && chars[from] === content) from++;
	let to = chars.length;
	while (chars.length - to < stop && to > from && chars[to - 1] === content) to--;
	return chars.slice(from, to).join("");
}

/** No such token id (or a hole in the vocabulary): adds nothing to the text. */
export const TOKEN_UNKNOWN = 1;
/** The token is whole characters: its text is in `texts`. */
export const TOKEN_TEXT = 2;
/** The token is bytes that are not whole characters: they are in `byteStrings`. */
export const TOKEN_BYTES = 3;

const BYTE_TOKEN = /^<0x([0-9a-fA-F]{2})>$/;

/**
 * What each token id adds to the text, worked out when an id is first met and then kept, so that loading
 * a vocabulary costs nothing here. Shared by all streams of a model.
 */
export class TokenTable {
	/** Vocabulary text by id, as tokenizer.json spells it; undefined: no such id. */
	readonly tokens: readonly (string | undefined)[];
	/** 1 for tokens that are left out with skipSpecialTokens, by id. */
	readonly special: Uint8Array;
	readonly plan: DecoderPlan;
	/** 0 (not yet looked at) or one of the TOKEN_ constants, by id. */
	readonly kinds: Uint8Array;
	readonly texts: (string | undefined)[];
	readonly byteStrings: (Uint8Array | undefined)[];

	constructor(tokens: readonly (string | undefined)[], special: Uint8Array, plan: DecoderPlan) {
		this.tokens = tokens;
		this.special = special;
		this.plan = plan;
		this.kinds = new Uint8Array(tokens.length);
		this.texts = new Array(tokens.length);
		this.byteStrings = new Array(tokens.length);
	}

	/** Kind of a token id, a TOKEN_ constant; fills `texts` and `byteStrings` when the id is new. */
	kindOf(id: number): number {
		const known = this.kinds[id];
		if (known === undefined) return TOKEN_UNKNOWN;
		return known !== 0 ? known : this.#resolve(id);
	}

	/** Text of a TOKEN_TEXT token that no token came before. */
	firstText(id: number): string {
		const token = this.tokens[id]!;
		return this.#rawBytes(token) === undefined ? this.plan.piece(token, true) : this.texts[id]!;
	}

	#resolve(id: number): number {
		const token = this.tokens[id];
		if (token === undefined) return this.#set(id, TOKEN_UNKNOWN);
		const bytes = this.#rawBytes(token);
		if (bytes === undefined) {
			this.texts[id] = this.plan.piece(token, false);
			return this.#set(id, TOKEN_TEXT);
		}
		if (isUtf8(bytes)) {
			const text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("utf8");
			this.texts[id] = this.plan.afterBytes === undefined ? text : this.plan.afterBytes(text);
			return this.#set(id, TOKEN_TEXT);
		}
		this.byteStrings[id] = bytes;
		return this.#set(id, TOKEN_BYTES);
	}

	#rawBytes(token: string): Uint8Array | undefined {
		if (this.plan.bytes === "byte-level") {
			const piece = this.plan.piece(token, false);
			return byteLevelBytes(piece) ?? Buffer.from(piece, "utf8");
		}
		if (this.plan.bytes === "byte-fallback") {
			const match = BYTE_TOKEN.exec(this.plan.piece(token, false));
			if (match !== null) return Uint8Array.of(Number.parseInt(match[1]!, 16));
		}
		return undefined;
	}

	#set(id: number, kind: number): number {
		this.kinds[id] = kind;
		return kind;
	}
}
