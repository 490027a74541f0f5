// SPDX-License-Identifier: Apache-2.0
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { mdcsum, parseModelCard, verifyChecksum } from "@dynamo-ts/protocols/internal";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { buildCard, type CardOptions } from "./card.js";
import { readVocabulary } from "./mocker.js";
import { findModelFiles, type ModelFiles, readSamplingDefaults } from "./model-files.js";
import { ENGINE_INFO } from "./test-support/scripted-engine.js";

let folder: string;
let files: ModelFiles;

beforeAll(async () => {
	folder = mkdtempSync(join(tmpdir(), "card-test-"));
	const write = (name: string, text: string) => writeFileSync(join(folder, name), text);
	write("config.json", '{"max_position_embeddings":8192}');
	write("tokenizer.json", "{}");
	write("tokenizer_config.json", '{"chat_template":"x"}');
	write("generation_config.json", '{"temperature":0.5,"top_p":2,"top_k":0,"do_sample":true}');
	write("special_tokens_map.json", "{}");
	write("model.safetensors", "weights");
	write("README.md", "text");
	write(".gitattributes", "text");
	mkdirSync(join(folder, "onnx"));
	files = await findModelFiles({ kind: "folder", path: folder }, "unused");
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function options(overrides: Partial<CardOptions> = {}): CardOptions {
	return {
		displayName: "Org/My Model",
		sourcePath: "/models/mine",
		files,
		info: ENGINE_INFO,
		contextLength: 100,
		...overrides,
	};
}

describe("the card", () => {
	test("has the members and the order of Dynamo's own", async () => {
		const real = JSON.parse(await readFile(new URL("../fixtures/card-agg.json", import.meta.url), "utf8"));
		const card = await buildCard(options({ urlOf: (file) => `http://host/${file}` }));
		expect(Object.keys(card)).toEqual(Object.keys(real.card_json));
		expect(Object.keys(card.runtime_config ?? {})).toEqual(Object.keys(real.card_json.runtime_config));
		for (const slot of ["model_info", "tokenizer", "prompt_formatter", "gen_config"]) {
			expect(Object.keys(card[slot] as object)).toEqual(Object.keys(real.card_json[slot]));
		}
		expect(parseModelCard(JSON.parse(JSON.stringify(card)))).toBeDefined();
	});

	test.each([
		["prefill", "card-prefill-nobootstrap"],
		["decode", "card-decode"],
	] as const)("of a %s worker says so as Dynamo's does", async (role, fixture) => {
		const real = JSON.parse(await readFile(new URL(`../fixtures/${fixture}.json`, import.meta.url), "utf8")).card_json;
		const kvEvents = role === "prefill";
		const card = await buildCard(options({ role, kvEvents, urlOf: (file) => `http://host/${file}` }));
		expect(Object.keys(card)).toEqual(Object.keys(real));
		for (const member of ["model_type", "model_input", "worker_type", "needs"])
			expect(card[member]).toEqual(real[member]);
		for (const member of ["enable_local_indexer", "kv_event_publishing_enabled"]) {
			expect(card.runtime_config?.[member]).toBe(real.runtime_config[member]);
		}
	});

	test("says what the engine is and what it was told", async () => {
		const card = await buildCard(options({ toolCallParser: "hermes" }));
		expect(card).toMatchObject({
			display_name: "Org/My Model",
			slug: "org_my_model",
			source_path: "/models/mine",
			architectural_max_context_length: 8192,
			context_length: 100,
			kv_cache_block_size: 16,
			model_type: "Chat | Completions",
			model_input: "Tokens",
			worker_type: "aggregated",
			needs: [],
		});
		expect(card.runtime_config).toMatchObject({
			context_length: 100,
			total_kv_blocks: 56,
			max_num_seqs: 8,
			max_num_batched_tokens: 72,
			tool_call_parser: "hermes",
		});
	});

	test("checksums are those of the files", async () => {
		const card = await buildCard(options());
		const file = (card.tokenizer as { hf_tokenizer_json: { path: string; checksum: string; size: number } })
			.hf_tokenizer_json;
		expect(file).toMatchObject({ path: join(folder, "tokenizer.json"), size: 2 });
		verifyChecksum(await readFile(file.path), file.checksum);
	});

	test("extra files are listed only where they are served, and then what a frontend can use", async () => {
		expect((await buildCard(options())).extra_files).toBeUndefined();
		const card = await buildCard(options({ urlOf: (file) => `http://host/${file}` }));
		expect(card.extra_files?.map(({ path }) => path)).toEqual([
			`http://host/${join(folder, "special_tokens_map.json")}`,
		]);
	});

	test("where the files are does not change the checksum, the context does", async () => {
		const card = await buildCard(options());
		const moved = await buildCard(options({ files: { ...files, extra: [] }, urlOf: (file) => `http://host/${file}` }));
		expect(mdcsum(moved)).toBe(mdcsum(card));
		expect(mdcsum(await buildCard(options({ contextLength: 0 })))).not.toBe(mdcsum(card));
	});
});

describe("model files", () => {
	test("a folder without tokenizer.json says so", async () => {
		const other = join(folder, "onnx");
		writeFileSync(join(other, "config.json"), "{}");
		await expect(findModelFiles({ kind: "folder", path: other }, "unused")).rejects.toThrow(/no tokenizer\.json/);
	});

	test("chat templates in files of their own", async () => {
		const other = mkdtempSync(join(folder, "templates-"));
		for (const name of ["config.json", "tokenizer.json", "chat_template.json"]) writeFileSync(join(other, name), "{}");
		const read = () => findModelFiles({ kind: "folder", path: other }, "unused");
		expect((await read()).chatTemplate?.kind).toBe("json");
		expect((await buildCard(options({ files: await read() }))).chat_template_file).toHaveProperty(
			"hf_chat_template_json.file.checksum",
		);
		writeFileSync(join(other, "chat_template.jinja"), "x");
		expect((await read()).chatTemplate?.kind).toBe("jinja");
		expect((await buildCard(options({ files: await read() }))).chat_template_file).toHaveProperty(
			"hf_chat_template.file.checksum",
		);
	});

	test("recommended sampling values, without those that make no sense", async () => {
		expect(await readSamplingDefaults(files.generationConfig)).toEqual({ temperature: 0.5 });
		expect(await readSamplingDefaults(undefined)).toEqual({});
	});

	const gguf = process.env.DYNAMO_TEST_MODEL_GGUF;
	describe.skipIf(gguf === undefined)("of a GGUF file (DYNAMO_TEST_MODEL_GGUF)", () => {
		test("are made once and kept by content", async () => {
			const cache = join(folder, "cards");
			const [a, b] = await Promise.all([
				findModelFiles({ kind: "gguf", path: gguf! }, cache),
				findModelFiles({ kind: "gguf", path: gguf! }, cache),
			]);
			expect(a).toEqual(b);
			const config = JSON.parse(await readFile(a.config, "utf8"));
			expect(config.max_position_embeddings).toBeGreaterThan(0);
			expect(JSON.parse(await readFile(a.tokenizerConfig!, "utf8")).chat_template).toContain("message");
			const { vocabSize, tokenIdRange } = await readVocabulary(a.tokenizer);
			expect(vocabSize).toBe(config.vocab_size);
			expect(tokenIdRange[1] - tokenIdRange[0]).toBeGreaterThan(vocabSize / 2);
		});
	});
});

test("the simulated engine's vocabulary leaves special tokens out", async () => {
	const path = join(folder, "vocabulary.json");
	const special = (id: number) => ({ id, special: true });
	writeFileSync(
		path,
		JSON.stringify({
			model: { vocab: { a: 0, b: 1, c: 2, d: 3, e: 4, f: 5 } },
			added_tokens: [special(1), special(6), { id: 7, special: false }],
		}),
	);
	expect(await readVocabulary(path)).toEqual({ vocabSize: 8, tokenIdRange: [2, 6] });
	writeFileSync(
		path,
		JSON.stringify({
			model: {
				vocab: [
					["a", 0],
					["b", 0],
				],
			},
		}),
	);
	expect(await readVocabulary(path)).toEqual({ vocabSize: 2, tokenIdRange: [0, 2] });
});
