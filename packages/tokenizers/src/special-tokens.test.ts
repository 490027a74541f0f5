// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from "vitest";
import {
	resolveSpecialTokens,
	type SpecialTokenSources,
	shouldAddSpecialTokens,
	type TokenLookup,
} from "./special-tokens.js";

function lookup(special: string[], others: string[] = []): TokenLookup {
	const tokens = [...special, ...others];
	return {
		tokenToId: (token) => (tokens.includes(token) ? tokens.indexOf(token) : undefined),
		idToToken: (id) => tokens[id],
		specialTokens: new Map(special.map((token, id) => [token, id])),
	};
}

const tokenizer = lookup(["<s>", "</s>", "<|im_end|>", "<|eot_id|>"], ["x"]);
const all: SpecialTokenSources = {
	generationConfig: { eos_token_id: [3, 1], bos_token_id: 0 },
	config: { eos_token_id: 11, bos_token_id: 10 },
	tokenizerConfig: { eos_token: "</s>", bos_token: { content: "<s>", special: true }, pad_token: null },
	specialTokensMap: { eos_token: { content: "<|im_end|>" }, bos_token: "<s>" },
	tokenizer,
};

describe("resolveSpecialTokens - where the end of sequence comes from", () => {
	it.each<[string, SpecialTokenSources, readonly number[]]>([
		["generation_config", all, [3, 1]],
		["config", { ...all, generationConfig: {} }, [11]],
		["config", { ...all, generationConfig: undefined, config: { text_config: { eos_token_id: [7, 8] } } }, [7, 8]],
		["tokenizer_config", { ...all, generationConfig: { eos_token_id: null }, config: {} }, [1]],
		[
			"special_tokens_map",
			{ ...all, generationConfig: undefined, config: { eos_token_id: -1 }, tokenizerConfig: {} },
			[2],
		],
		[
			"special_tokens_map",
			{ specialTokensMap: all.specialTokensMap, tokenizerConfig: { eos_token: "unheard-of" }, tokenizer },
			[2],
		],
		["tokenizer", { tokenizer }, [3]],
		["tokenizer", { tokenizer: lookup(["<unk>", "</s>"]) }, [1]],
		["none", { tokenizer: lookup(["<unk>"]) }, []],
		["none", {}, []],
	])("%s", (source, sources, ids) => {
		const tokens = resolveSpecialTokens(sources);
		expect(tokens.eosTokenIds).toEqual(ids);
		expect(tokens.eosSource).toBe(source);
	});

	it("a known end-of-sequence text that is no special token is not taken", () => {
		expect(resolveSpecialTokens({ tokenizer: lookup(["<s>"], ["</s>"]) }).eosSource).toBe("none");
	});

	it("gives bos, pad and the template's variables", () => {
		const tokens = resolveSpecialTokens({
			...all,
			tokenizerConfig: {
				bos_token: { content: "<s>" },
				image_token: "<image>",
				chat_template: "x",
				unk_token: "<unk>",
			},
		});
		expect(tokens).toMatchObject({ bosTokenId: 0, bosSource: "generation_config", padTokenId: undefined });
		expect(tokens.variables).toEqual({
			bos_token: "<s>",
			eos_token: "<|im_end|>",
			image_token: "<image>",
			unk_token: "<unk>",
		});
	});

	it("without files that spell the tokens out, variables come from the ids", () => {
		const tokens = resolveSpecialTokens({ config: { bos_token_id: 0, eos_token_id: [2, 1] }, tokenizer });
		expect(tokens.variables).toEqual({ bos_token: "<s>", eos_token: "<|im_end|>" });
	});
});

describe("shouldAddSpecialTokens", () => {
	it.each([
		["chat", "<s>hello", "<s>", false],
		["chat", "hello", "<s>", false],
		["completion", "hello", "<s>", true],
		["completion", "<s>hello", "<s>", false],
		["completion", "hello", undefined, true],
		["completion", "hello", "", true],
	] as const)("%s %j with bos %j: %s", (kind, text, bos, expected) => {
		expect(shouldAddSpecialTokens(kind, text, bos)).toBe(expected);
	});
});
