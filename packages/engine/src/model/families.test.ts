// SPDX-License-Identifier: Apache-2.0
// Every family against logits that transformers computed in fp32 (scripts/golden-families.py): prompts in one
// piece, in chunks, and token by token.

import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, it } from "vitest";
import { SafetensorsWeights } from "../weights/safetensors.js";
import { FAMILIES } from "./families.js";
import { loadModelRunner } from "./load-model-runner.js";
import type { Quantization } from "./model-runner.js";
import { familyGguf } from "./testing/family-gguf.js";
import { RunnerDriver } from "./testing/runner-driver.js";
import { encodeSafetensors, type TinyTensor } from "./testing/tiny-llama.js";

const FIXTURES = fileURLToPath(new URL("../../fixtures/families/", import.meta.url));
const NAMES = readdirSync(FIXTURES).sort();
/** Of fp32 arithmetic in another order; logits reach ten. */
const LOGIT_ERROR = 1e-4;

const root = mkdtempSync(join(tmpdir(), "families-"));
afterAll(() => rmSync(root, { recursive: true }));

interface Golden {
	readonly ids: Int32Array;
	readonly vocabSize: number;
	/** [ids, vocabSize] */
	readonly logits: Float32Array;
}

function golden(name: string): Golden {
	const json = JSON.parse(readFileSync(join(FIXTURES, name, "golden.json"), "utf8"));
	const bytes = new Uint8Array(Buffer.from(json.logits, "base64"));
	return { ids: Int32Array.from(json.ids), vocabSize: json.vocabSize, logits: new Float32Array(bytes.buffer) };
}

async function withRunner<T>(
	name: string,
	quantization: Quantization,
	use: (runner: RunnerDriver) => T,
	model = join(FIXTURES, name),
): Promise<T> {
	const { ids } = golden(name);
	const runner = await loadModelRunner({
		model,
		maxNumSeqs: 2,
		maxModelLen: ids.length,
		quantization,
		cacheDir: join(root, "cache"),
	});
	try {
		return use(new RunnerDriver(runner));
	} finally {
		runner.close();
	}
}

/** Logits of a text whose first tokens are computed in chunks of the sizes given and whose rest is decoded. */
function logitsOf(runner: RunnerDriver, ids: Int32Array, chunks: readonly number[]): number[] {
	const out: number[] = [];
	let at = 0;
	for (const size of chunks) {
		for (const value of runner.prefillAllLogits(0, ids.slice(at, at + size), at)) out.push(value);
		at += size;
	}
	for (; at < ids.length; at++) {
		for (const value of runner.decode(1, ids.slice(at, at + 1), Int32Array.of(at))) out.push(value);
	}
	return out;
}

function largestDifference(actual: readonly number[], expected: Float32Array): number {
	expect(actual.length).toBe(expected.length);
	return actual.reduce((max, value, i) => Math.max(max, Math.abs(value - expected[i]!)), 0);
}

describe.each(NAMES)("%s", (name) => {
	const { ids, logits, vocabSize } = golden(name);

	it.each([
		["in one piece", [ids.length]],
		["in chunks", [7, 13, 3, ids.length - 23]],
		["decoded", [1]],
		["in chunks, then decoded", [16, 5]],
	])("gives the logits of the reference: %s", async (_, chunks) => {
		const actual = await withRunner(name, "none", (runner) => logitsOf(runner, ids, chunks));
		expect(largestDifference(actual, logits)).toBeLessThan(LOGIT_ERROR);
	});

	it("gives the same to sequences of other lengths in one batch", async () => {
		const behind = 17;
		const actual = await withRunner(name, "none", (runner) => {
			runner.prefill(0, ids.slice(0, behind + 2), 0, false);
			runner.prefill(1, ids.slice(0, 2), 0, false);
			const out: number[] = [];
			for (let at = 2; at + behind < ids.length; at++) {
				const both = runner.decode(2, Int32Array.of(ids[at + behind]!, ids[at]!), Int32Array.of(at + behind, at));
				for (const value of both) out.push(value);
			}
			return out;
		});
		const expected: number[] = [];
		for (let at = 2; at + behind < ids.length; at++) {
			for (const token of [at + behind, at]) {
				expected.push(...logits.subarray(token * vocabSize, (token + 1) * vocabSize));
			}
		}
		expect(largestDifference(actual, Float32Array.from(expected))).toBeLessThan(LOGIT_ERROR);
	});

	it.each(["auto", "int8", "int4"] as const)("runs quantized: %s", async (quantization) => {
		const actual = await withRunner(name, quantization, (runner) => logitsOf(runner, ids, [16, 5]));
		expect(actual.length).toBe(ids.length * vocabSize);
		const power = logits.reduce((sum, value) => sum + value ** 2, 0);
		const error = actual.reduce((sum, value, i) => sum + (value - logits[i]!) ** 2, 0);
		expect(Math.sqrt(error / power)).toBeLessThan(quantization === "int4" ? 0.8 : 0.12);
	});
});

/** What llama.cpp's files cannot say: other windows and scales than those of the published models. */
const NOT_IN_GGUF = ["qwen2-window-yarn", "llama-dynamic", "gemma3-scaled"];

describe("as GGUF", () => {
	it.each(NAMES.filter((name) => !NOT_IN_GGUF.includes(name)))("%s", async (name) => {
		const { ids, logits } = golden(name);
		const path = join(root, `${name}.gguf`);
		writeFileSync(path, familyGguf(join(FIXTURES, name)));
		const actual = await withRunner(name, "none", (runner) => logitsOf(runner, ids, [16, 5]), path);
		expect(largestDifference(actual, logits)).toBeLessThan(LOGIT_ERROR);
	});
});

it("Gemma 3 inside a model that sees images", async () => {
	const { ids, logits } = golden("gemma3");
	const source = new SafetensorsWeights(join(FIXTURES, "gemma3"));
	const tensors = new Map<string, TinyTensor>();
	for (const { name, shape, rows } of source.tensors.values()) {
		tensors.set(`language_model.${name}`, { shape, data: source.readRows(name, 0, rows) });
	}
	source.close();
	tensors.set("vision_tower.layer.weight", { shape: [2, 2], data: new Float32Array(4) });
	const folder = join(root, "multimodal");
	mkdirSync(folder);
	writeFileSync(join(folder, "model.safetensors"), encodeSafetensors(tensors, "F32"));
	const text = JSON.parse(readFileSync(join(FIXTURES, "gemma3", "config.json"), "utf8"));
	const config = { architectures: ["Gemma3ForConditionalGeneration"], model_type: "gemma3", text_config: text };
	writeFileSync(join(folder, "config.json"), JSON.stringify(config));
	const actual = await withRunner("gemma3", "none", (runner) => logitsOf(runner, ids, [ids.length]), folder);
	expect(largestDifference(actual, logits)).toBeLessThan(LOGIT_ERROR);
});

it("every family has a golden file", () => {
	const families = new Set(NAMES.map((name) => name.split("-")[0]));
	expect([...families].sort()).toEqual(Object.keys(FAMILIES).sort());
});
