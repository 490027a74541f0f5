// SPDX-License-Identifier: Apache-2.0
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { makeTinyLlama, writeTinyFolder } from "../model/testing/tiny-llama.js";
import { SafetensorsWeights } from "./safetensors.js";

const root = mkdtempSync(join(tmpdir(), "safetensors-"));
afterAll(() => rmSync(root, { recursive: true }));
let folders = 0;

function newFolder(): string {
	const folder = join(root, String(folders++));
	mkdirSync(folder);
	return folder;
}

/** A folder with one file of a given header. */
function folderWith(header: unknown, dataBytes: number): string {
	const folder = newFolder();
	const json = Buffer.from(typeof header === "string" ? header : JSON.stringify(header));
	const length = Buffer.alloc(8);
	length.writeBigUInt64LE(BigInt(json.length));
	writeFileSync(join(folder, "model.safetensors"), Buffer.concat([length, json, Buffer.alloc(dataBytes)]));
	return folder;
}

const open = (folder: string) => new SafetensorsWeights(folder);
const f32 = (begin: number, end: number, shape = [(end - begin) / 4]) => ({
	dtype: "F32",
	shape,
	data_offsets: [begin, end],
});

describe("safetensors", () => {
	const model = makeTinyLlama();

	for (const shards of [1, 3]) {
		it(`reads fp32 from ${shards} file(s) unchanged`, () => {
			const weights = open(writeTinyFolder(newFolder(), model, { shards }));
			expect(weights.tensors.size).toBe(model.tensors.size);
			for (const [name, { data }] of model.tensors) {
				expect([...weights.readRows(name, 0, weights.tensors.get(name)!.rows)]).toEqual([...data]);
			}
			weights.close();
		});
	}

	for (const [type, error] of [
		["F16", 2 ** -11],
		["BF16", 2 ** -8],
	] as const) {
		it(`reads ${type} within its precision`, () => {
			const weights = open(writeTinyFolder(newFolder(), model, { type }));
			const name = "model.layers.0.mlp.down_proj.weight";
			const expected = model.tensors.get(name)!.data.subarray(3 * 96, 5 * 96);
			const rows = weights.readRows(name, 3, 2);
			expected.forEach((value, i) => {
				expect(Math.abs(rows[i]! - value)).toBeLessThanOrEqual(Math.abs(value) * error + 2 ** -24);
			});
			weights.close();
		});
	}

	it("refuses broken headers", () => {
		expect(() => open(folderWith("{", 0))).toThrow(/header is not JSON/);
		expect(() => open(folderWith([], 0))).toThrow(/not an object/);
		expect(() => open(folderWith({ a: { dtype: "F32" } }, 4))).toThrow(/tensor a has a broken entry/);
		expect(() => open(folderWith({ a: f32(0, 8) }, 4))).toThrow(/tensor a lies at 0-8 but there are 4 bytes/);
		expect(() => open(folderWith({ a: f32(0, 8, [3]) }, 8))).toThrow(/tensor a needs 12 bytes but has 8/);
		expect(() => open(folderWith({ a: f32(0, 8), b: f32(4, 12) }, 12))).toThrow(/tensors a and b overlap/);
		const long = newFolder();
		const length = Buffer.alloc(16);
		length.writeBigUInt64LE(100_000_001n);
		writeFileSync(join(long, "model.safetensors"), length);
		expect(() => open(long)).toThrow(/longer than 100000000/);
		length.writeBigUInt64LE(1000n);
		writeFileSync(join(long, "model.safetensors"), length);
		expect(() => open(long)).toThrow(/cut short/);
	});

	it("refuses an index that names a missing file, a path, or nothing", () => {
		const folder = newFolder();
		const index = (value: unknown) =>
			writeFileSync(join(folder, "model.safetensors.index.json"), JSON.stringify(value));
		index({ weight_map: { a: "model-1.safetensors" } });
		expect(() => open(folder)).toThrow(/model-1\.safetensors: cannot be opened \(ENOENT\)/);
		index({ weight_map: { a: "../model.safetensors" } });
		expect(() => open(folder)).toThrow(/weight_map names the file/);
		index({});
		expect(() => open(folder)).toThrow(/has no weight_map/);
		expect(() => open(newFolder())).toThrow(/neither model\.safetensors nor/);
	});

	it("skips tensors of other types until they are asked for", () => {
		const weights = open(folderWith({ mask: { dtype: "BOOL", shape: [4], data_offsets: [0, 4] }, a: f32(4, 8) }, 8));
		expect([...weights.tensors.keys()]).toEqual(["a"]);
		expect(() => weights.readRows("mask", 0, 1)).toThrow(/no tensor mask of type F32, F16, BF16/);
		weights.close();
	});
});
