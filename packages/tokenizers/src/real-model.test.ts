// SPDX-License-Identifier: Apache-2.0
// The default model's own files, where the machine has them: DYNAMO_TEST_MODEL_GGUF names its GGUF file,
// DYNAMO_TEST_MODEL_HF its Hugging Face folder.
import { closeSync, openSync, readFileSync, readSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import native from "tokenizers";
import { describe, expect, it } from "vitest";
import { ChatTemplate } from "./chat-template.js";
import { convertGgufTokenizer } from "./gguf-tokenizer.js";
import { resolveSpecialTokens } from "./special-tokens.js";
import { Tokenizer } from "./tokenizer.js";

const gguf = process.env.DYNAMO_TEST_MODEL_GGUF;
const folder = process.env.DYNAMO_TEST_MODEL_HF;
const skipReason = (name: string, value: string | undefined): string => (value ? "" : ` (skipped: ${name} is not set)`);

/** Key-values at the start of a GGUF file (format: the GGUF specification, version 3). */
function readMetadata(path: string): Map<string, unknown> {
	const buffer = Buffer.alloc(16 << 20);
	const file = openSync(path, "r");
	readSync(file, buffer);
	closeSync(file);
	let at = 0;
	const skip = (bytes: number): number => {
		at += bytes;
		return at - bytes;
	};
	const u32 = (): number => buffer.readUInt32LE(skip(4));
	const u64 = (): number => Number(buffer.readBigUInt64LE(skip(8)));
	const string = (): string => {
		const length = u64();
		at += length;
		return buffer.toString("utf8", at - length, at);
	};
	const value = (type: number): unknown => {
		switch (type) {
			case 0:
				return buffer.readUInt8(skip(1));
			case 1:
				return buffer.readInt8(skip(1));
			case 4:
				return u32();
			case 5:
				return buffer.readInt32LE(skip(4));
			case 6:
				return buffer.readFloatLE(skip(4));
			case 7:
				return buffer.readUInt8(skip(1)) === 1;
			case 8:
				return string();
			case 9: {
				const item = u32();
				return Array.from({ length: u64() }, () => value(item));
			}
			case 10:
				return BigInt(u64());
			default:
				throw new Error(`GGUF value type ${type} is not read here`);
		}
	};
	expect(buffer.toString("latin1", 0, 4)).toBe("GGUF");
	at = 16; // magic, version, number of tensors
	const metadata = new Map<string, unknown>();
	for (let n = u64(); n > 0; n--) metadata.set(string(), value(u32()));
	return metadata;
}

const mixed = fc.oneof(
	fc.string({ unit: "grapheme", maxLength: 60 }),
	fc.string({ unit: "binary", maxLength: 30 }),
	fc
		.array(
			fc.constantFrom("The", " cat", "'s", "  ", "\n\n", "1234", " é", "世界", "½", "ﬁ", "<|im_end|>", "\t", "it's"),
			{ maxLength: 20 },
		)
		.map((p) => p.join("")),
);

interface Greedy {
	fixtures: { name: string; prompt: string; prompt_ids: number[]; greedy_ids: number[]; text: string }[];
}
const greedy: Greedy = JSON.parse(readFileSync(new URL("../fixtures/greedy.json", import.meta.url), "utf8"));

describe.skipIf(!gguf)(`real GGUF${skipReason("DYNAMO_TEST_MODEL_GGUF", gguf)}`, () => {
	const files = gguf ? convertGgufTokenizer(readMetadata(gguf), { tieWordEmbeddings: true }) : undefined;
	const tokenizer = files && Tokenizer.fromJson(files.tokenizerJson);

	it.each(greedy.fixtures)("prompt and answer of $name", async ({ prompt, prompt_ids, greedy_ids, text }) => {
		expect(await tokenizer!.encode(prompt, { addSpecialTokens: false })).toEqual(prompt_ids);
		expect(await tokenizer!.encode(prompt)).toEqual(prompt_ids);
		expect(tokenizer!.decode(greedy_ids)).toBe(text);
	});

	it("the chat template gives the recorded prompt", () => {
		const tokenizerConfig = JSON.parse(files!.tokenizerConfig);
		const { variables } = resolveSpecialTokens({ tokenizerConfig });
		const chat = new ChatTemplate({ tokenizerConfig }, variables);
		const found = greedy.fixtures.find((f) => f.name === "capital")!;
		const question = found.prompt.match(/user\n(.*?)<\|im_end\|>/)![1]!;
		expect(chat.render({ messages: [{ role: "user", content: question }] })).toBe(found.prompt);
		expect(chat.render({ messages: [{ role: "user", content: [{ type: "text", text: question }] }] })).toBe(
			found.prompt,
		);
	});

	describe.skipIf(!folder)(`against its Hugging Face folder${skipReason("DYNAMO_TEST_MODEL_HF", folder)}`, () => {
		const read = (name: string): string => readFileSync(join(folder!, name), "utf8");

		it("encodes and decodes as the model's own tokenizer.json", async () => {
			const reference = await Tokenizer.fromFile(join(folder!, "tokenizer.json"));
			expect(tokenizer!.vocabSize).toBe(reference.vocabSize);
			expect([...tokenizer!.specialTokens]).toEqual([...reference.specialTokens]);
			await fc.assert(
				fc.asyncProperty(mixed, async (text) => {
					const ids = await reference.encode(text);
					expect(await tokenizer!.encode(text)).toEqual(ids);
					expect(tokenizer!.decode(ids, { skipSpecialTokens: false })).toBe(
						reference.decode(ids, { skipSpecialTokens: false }),
					);
				}),
				{ numRuns: 500 },
			);
		});

		it("encodes at once what the native library encodes", async () => {
			const json = readFileSync(join(folder!, "tokenizer.json"), "utf8");
			const tokenizer = Tokenizer.fromJson(json);
			const reference = native.Tokenizer.fromString(json);
			await tokenizer.encode("ready");
			const source = readFileSync(new URL("./tokenizer.ts", import.meta.url), "utf8");
			for (let at = 0; at < source.length; at += 300) {
				const text = `<|im_start|>user\n${source.slice(at, at + 300)}<|im_end|>`;
				const expected = (await reference.encode(text, null, { addSpecialTokens: false })).getIds();
				expect(tokenizer.encodeNow(text, { addSpecialTokens: false })).toEqual(expected);
			}
		});

		it("config.json says what the model's own says", () => {
			const own = JSON.parse(read("config.json"));
			const ours = JSON.parse(files!.config!);
			for (const key of Object.keys(ours)) {
				if (key === "eos_token_id") expect([ours[key]].flat()[0]).toBe(own[key]);
				else expect({ [key]: ours[key] }).toEqual({ [key]: own[key] });
			}
		});
	});
});
