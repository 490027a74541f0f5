// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from "vitest";
import { parseJson } from "../json.js";
import type { ModelDeploymentCard } from "../model-card.js";
import { fixture } from "../testing/fixtures.js";
import { blake3Hex, checkedFile, verifyChecksum } from "./checksum.js";
import { mdcsum } from "./mdcsum.js";
import { formatModelType, parseModelType } from "./model-type.js";
import { effectiveContextLength, parseModelCard } from "./parse-card.js";
import { isSlug, slugify } from "./slugify.js";

const cardOf = (name: string): ModelDeploymentCard => {
	const value = parseJson(fixture(`wire/${name}.json`)) as Record<string, unknown>;
	return parseModelCard(value.card_json ?? value);
};
const AGG = cardOf("card-agg");

describe("mdcsum", () => {
	it.each([
		["card-agg", "e735a6b1af01babe4619d4786eb4256ff51f93829939d23ce0adfa3d6a7a0809"],
		["card-decode", "fb2b88ca07ed4eef6532e0744d2998ff3b24fbcb869a13234bdadb9dae8d0453"],
	])("of %s is what Dynamo's frontend sent", (name, sum) => {
		expect(mdcsum(cardOf(name))).toBe(sum);
	});

	it.each<[string, Partial<ModelDeploymentCard>]>([
		["model_type", { model_type: "Embedding" }],
		["migration_limit", { migration_limit: 9 }],
		["the rest of runtime_config", { runtime_config: { ...AGG.runtime_config, total_kv_blocks: 1 } }],
		["lora", { lora: { name: "x" } }],
		[
			"the directory of a file",
			{ extra_files: AGG.extra_files?.map((file) => ({ ...file, path: "/a/special_tokens_map.json" })) },
		],
	])("does not depend on %s", (_, change) => {
		expect(mdcsum({ ...AGG, ...change })).toBe(mdcsum(AGG));
	});

	it.each<[string, Partial<ModelDeploymentCard>]>([
		["display_name", { display_name: "other" }],
		["source_path", { source_path: undefined }],
		["gen_config", { gen_config: null }],
		["a file's name", { extra_files: AGG.extra_files?.map((file) => ({ ...file, path: "/a/b.json" })) }],
		["context length", { runtime_config: { ...AGG.runtime_config, context_length: 1 } }],
		["an absent context length", { runtime_config: { ...AGG.runtime_config, context_length: undefined } }],
		["kv_cache_block_size", { kv_cache_block_size: 32 }],
		["worker_type", { worker_type: null }],
		["needs", { needs: [["prefill"]] }],
		["aliases", { aliases: ["a"] }],
		["router_config", { router_config: { mode: "kv" } }],
	])("depends on %s", (_, change) => {
		expect(mdcsum({ ...AGG, ...change })).not.toBe(mdcsum(AGG));
	});

	it("does not depend on the order of the extra files", () => {
		const file = (path: string, digit: string) => ({ path, checksum: `blake3:${digit.repeat(64)}` });
		const files = [file("/x/a", "1"), file("/x/a", "2"), file("/x/b", "0")];
		expect(mdcsum({ ...AGG, extra_files: files })).toBe(mdcsum({ ...AGG, extra_files: [...files].reverse() }));
	});
});

describe("context length", () => {
	it.each<[Partial<ModelDeploymentCard>, number]>([
		[{}, 0],
		[{ context_length: 5 }, 5],
		[{ context_length: 5, architectural_max_context_length: 7 }, 7],
		[{ context_length: 5, architectural_max_context_length: 7, runtime_config: { context_length: 0 } }, 0],
	])("of %j is %d", (card, length) => {
		expect(effectiveContextLength(card as ModelDeploymentCard)).toBe(length);
	});
});

describe("checksums", () => {
	it("are plain BLAKE3", () => {
		expect(blake3Hex(Buffer.alloc(0))).toBe("af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262");
		expect(checkedFile("/m/config.json", Buffer.from("abc"))).toEqual({
			path: "/m/config.json",
			checksum: "blake3:6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85",
			size: 3,
		});
	});

	it("are verified", () => {
		const bytes = Buffer.from("abc");
		expect(() => verifyChecksum(bytes, checkedFile("x", bytes).checksum)).not.toThrow();
		expect(() => verifyChecksum(Buffer.from("abd"), checkedFile("x", bytes).checksum)).toThrow("checksum mismatch");
		expect(() => verifyChecksum(bytes, "sha256:00")).toThrow("is not blake3");
	});
});

// Answers of Dynamo 1.6.1's own card reader.
describe("slugs", () => {
	it.each([
		["A.b c+D", "a_b_c_d"],
		["_.Lead__x", "lead__x"],
		["ÜberÉ€", "ber__"],
		["org/Na-me_1", "org_na-me_1"],
		["--x--", "--x--"],
		["...", ""],
		["Trail.", "trail_"],
	])("of %s is %s", (name, slug) => {
		expect(slugify(name)).toBe(slug);
		expect(isSlug(slug)).toBe(true);
	});
});

describe("model types", () => {
	it.each([
		["Chat | Completions", ["Chat", "Completions"]],
		["Chat|Embedding", ["Chat", "Embedding"]],
		[" Chat ", ["Chat"]],
		["", []],
	])("%j", (text, flags) => {
		expect([...(parseModelType(text) ?? [])]).toEqual(flags);
	});
	it.each(["CHAT", "Chat |Completions|", "|", "Embeddings"])("refuses %j", (text) => {
		expect(parseModelType(text)).toBeUndefined();
	});
	it("are written in one order", () => {
		expect(formatModelType(["Completions", "Chat"])).toBe("Chat | Completions");
		expect(formatModelType([])).toBe("");
	});
});

// The pairs below were put to Dynamo 1.6.1's own card reader.
describe("cards", () => {
	const changed = (field: string, value: unknown): unknown => {
		const copy = structuredClone(AGG) as Record<string, unknown>;
		const [outer, inner] = field.split(".") as [string, string?];
		if (inner === undefined) copy[outer] = value;
		else (copy[outer] as Record<string, unknown>)[inner] = value;
		return copy;
	};
	const hex = "a".repeat(64);
	const file = (checksum: string, size?: unknown) => ({ hf_config_json: { path: "/x", checksum, size } });

	it.each<[string, unknown]>([
		["source_path", null],
		["worker_type", null],
		["context_length", null],
		["needs", [[]]],
		["slug", ""],
		["display_name", ""],
		["lora", { name: "x" }],
		["model_info", file(`blake3:${hex}`)],
		["runtime_config.max_num_seqs", null],
		["runtime_config.kv_event_publishing_enabled", null],
		["runtime_config.tool_call_parser", null],
		["runtime_config.structural_tag_mode", "on"],
		["user_data", 5],
	])("take %s = %j", (field, value) => {
		expect(() => parseModelCard(changed(field, value))).not.toThrow();
	});

	it.each<[string, unknown]>([
		["display_name", null],
		["slug", "a.b"],
		["aliases", null],
		["aliases", [1]],
		["extra_files", null],
		["extra_files", [{}]],
		["lora", {}],
		["worker_type", "bogus"],
		["needs", [["bogus"]]],
		["needs", ["prefill"]],
		["kv_cache_block_size", -1],
		["kv_cache_block_size", 1.5],
		["kv_cache_block_size", 2 ** 32],
		["migration_limit", "0"],
		["context_length", 2 ** 32],
		["source_path", 5],
		["model_info", {}],
		["model_info", { x: {} }],
		["model_info", file("sha256:00")],
		["model_info", file("blake3:00")],
		["model_info", file(`blake3:${hex.toUpperCase()}`)],
		["model_info", file(`blake3:${hex}`, -1)],
		["tokenizer", { hf_tokenizer_json: 5 }],
		["runtime_config.data_parallel_size", null],
		["runtime_config.enable_eagle", {}],
		["runtime_config.runtime_data", null],
		["runtime_config.tool_call_arguments_format", "bogus"],
	])("refuse %s = %j", (field, value) => {
		expect(() => parseModelCard(changed(field, value))).toThrow(/^model card/);
	});

	it("may be as small as the smallest that Dynamo serves", () => {
		expect(cardOf("card-minimal-chat").display_name).toBe("tsmin2");
	});
});
