// SPDX-License-Identifier: Apache-2.0
// Pre-tokenizer patterns are written for Oniguruma. What is translated here means the same to both engines on text
// of SAME_IN_BOTH; anything else is left to the native library.

/**
 * Text whose characters have the same classes in every Unicode version since 10 and in both regular expression
 * engines: blocks that were full by then, or whose newer members are symbols. U+0085 and U+FEFF are left out, which
 * only one of them takes for white space; so are the Kelvin sign and the long s, which match `k` and `s` regardless of
 * case.
 */
export const SAME_IN_BOTH = new RegExp(
	`^[${[
		"\\0-\\x84\\x86-\\u017e\\u0180-\\u024f\\u1e00-\\u1eff", // Latin
		"\\u0300-\\u036f\\ufe00-\\ufe0f", // combining marks, variation selectors
		"\\u0391-\\u03a1\\u03a3-\\u03e1\\u0400-\\u052f", // Greek, Cyrillic
		"\\u05d0-\\u05ea\\u0620-\\u06ff\\u0900-\\u097f\\u0e01-\\u0e3a\\u0e3f-\\u0e5b", // Hebrew, Arabic, Devanagari, Thai
		"\\u2000-\\u2064\\u20a0-\\u20bf\\u2150-\\u218b\\u2190-\\u23f3\\u2460-\\u2bff", // punctuation, symbols
		"\\u3000-\\u3029\\u3041-\\u3096\\u30a1-\\u30ff\\u4e00-\\u9fa5\\uac00-\\ud7a3\\uff01-\\uff5e", // East Asia
		"\\u{1f300}-\\u{1f64f}\\u{1f680}-\\u{1f6c5}\\u{1f900}-\\u{1f9ff}", // emoji
	].join("")}]*$`,
	"u",
);

/** What both engines read alike: classes, escapes, plain characters, greedy quantifiers, groups, `(?!\S)`. */
const PLAIN_SYNTAX =
	/^(?:\(\?:|\(\?!\\S\)|\)\??|\||\\p\{(?:L[ultmo]?|N|M|P|S)\}(?:[?*+]|\{\d(?:,\d)?\})?|\\[sSrn](?:[?*+])?|\\[-$+^.|[\]\\](?:[?*+])?|[^\\()[\]{}|?*+.^$#&~](?:[?*+])?|\[\^?(?:\\p\{(?:L[ultmo]?|N|M|P|S)\}|\\[-srn$+^.|[\]\\]|[^\\[\]&])+\](?:[?*+])?)(?![?*+])/u;

/** Expands `(?i:…)` of plain ASCII letters, which JavaScript cannot switch inside a pattern. */
function expandCase(pattern: string): string {
	return pattern.replace(
		/\(\?i:([a-z'|]+)\)/g,
		(_, body: string) => `(?:${body.replace(/[a-z]/g, (c) => `[${c}${c.toUpperCase()}]`)})`,
	);
}

/** The same pattern for JavaScript, with flags `gu`; undefined where that is not certain. */
export function translatePattern(pattern: string): RegExp | undefined {
	const expanded = expandCase(pattern);
	for (let rest = expanded; rest !== ""; ) {
		const part = PLAIN_SYNTAX.exec(rest);
		if (part === null) return undefined;
		rest = rest.slice(part[0].length);
	}
	try {
		const compiled = new RegExp(escapeForUnicodeMode(expanded), "gu");
		// What can match nothing is cut differently by the two.
		return new RegExp(compiled.source, "u").test("") ? undefined : compiled;
	} catch {
		return undefined;
	}
}

/** In JavaScript's Unicode mode only syntax characters may be escaped, `-` only inside a class. */
function escapeForUnicodeMode(pattern: string): string {
	let inside = false;
	return pattern.replace(/\\[\s\S]|\[|\]/g, (part) => {
		if (part === "[") inside = true;
		else if (part === "]") inside = false;
		else if (part === "\\-" && !inside) return "-";
		return part;
	});
}

/** Cuts a text into pieces; none of them empty. */
export type Splitter = (text: string) => string[];

/** Matches and what is between them, each a piece ("Isolated" in tokenizer.json). */
function isolating(pattern: RegExp): Splitter {
	return (text) => {
		const matches = text.match(pattern);
		if (matches === null) return [text];
		let length = 0;
		for (let i = 0; i < matches.length; i++) length += (matches[i] as string).length;
		return length === text.length ? matches : withGaps(text, pattern);
	};
}

function withGaps(text: string, pattern: RegExp): string[] {
	const pieces: string[] = [];
	let end = 0;
	for (const match of text.matchAll(pattern)) {
		if (match.index > end) pieces.push(text.slice(end, match.index));
		pieces.push(match[0]);
		end = match.index + match[0].length;
	}
	if (end < text.length) pieces.push(text.slice(end));
	return pieces;
}

const GPT2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

type Node = Record<string, unknown>;

/** The steps of a `pre_tokenizer` section that ends in byte level; undefined where it is not certain what one does. */
function stepsOf(node: Node | null | undefined, isLast: boolean): Splitter[] | undefined {
	switch (node?.type) {
		case "Sequence": {
			const parts = (node.pretokenizers ?? []) as Node[];
			const steps: Splitter[] = [];
			for (const [index, part] of parts.entries()) {
				const found = stepsOf(part, isLast && index === parts.length - 1);
				if (found === undefined) return undefined;
				steps.push(...found);
			}
			return parts.length === 0 ? undefined : steps;
		}
		case "ByteLevel": {
			// A step behind it would see the stand-ins of bytes, not the text.
			if (!isLast || node.add_prefix_space !== false) return undefined;
			return node.use_regex === false ? [] : [isolating(translatePattern(GPT2) as RegExp)];
		}
		case "Digits":
			return isLast ? undefined : [isolating(node.individual_digits === true ? /\p{N}/gu : /\p{N}+/gu)];
		case "Split": {
			const source = (node.pattern as { Regex?: unknown } | undefined)?.Regex;
			if (isLast || typeof source !== "string" || node.behavior !== "Isolated" || node.invert === true) {
				return undefined;
			}
			const pattern = translatePattern(source);
			return pattern === undefined ? undefined : [isolating(pattern)];
		}
		default:
			return undefined;
	}
}

/**
 * The splitting that a byte-level `pre_tokenizer` section of tokenizer.json does, for text of {@link SAME_IN_BOTH};
 * undefined for sections of other kinds and for patterns that are not understood for certain.
 */
export function planSplitter(section: unknown): Splitter | undefined {
	const steps = stepsOf(section as Node | null | undefined, true);
	if (steps === undefined) return undefined;
	const [first, ...others] = steps;
	if (first === undefined) return (text) => [text];
	return (text) => {
		let pieces = first(text);
		for (const step of others) {
			if (pieces.length === 1) pieces = step(pieces[0] as string);
			else {
				const finer: string[] = [];
				for (let i = 0; i < pieces.length; i++) {
					const parts = step(pieces[i] as string);
					for (let k = 0; k < parts.length; k++) finer.push(parts[k] as string);
				}
				pieces = finer;
			}
		}
		return pieces;
	};
}
