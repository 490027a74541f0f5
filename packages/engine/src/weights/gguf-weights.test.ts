// SPDX-License-Identifier: Apache-2.0
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import { encodeGguf, GgufEncoder, makeTinyLlama, type TinyGgufOptions } from "../model/testing/tiny-llama.js";
import { GgufWeights } from "./gguf-weights.js";
import { ModelFileError } from "./model-file-error.js";

const folder = mkdtempSync(join(tmpdir(), "gguf-"));
afterAll(() => rmSync(folder, { recursive: true }));
let files = 0;

function write(bytes: Uint8Array): string {
	const path = join(folder, `${files++}.gguf`);
	writeFileSync(path, bytes);
	return path;
}

function open(bytes: Uint8Array): GgufWeights {
	return new GgufWeights(write(bytes));
}

const model = makeTinyLlama();

describe("GGUF", () => {
	for (const version of [2, 3] as const) {
		it(`reads the tensors of version ${version} under their canonical names`, () => {
			const weights = open(encodeGguf(model, { version }));
			expect([...weights.tensors.keys()].sort()).toEqual([...model.tensors.keys()].sort());
			for (const [name, { shape, data }] of model.tensors) {
				const tensor = weights.tensors.get(name)!;
				expect(tensor.shape).toEqual(shape);
				expect([...weights.readRows(name, 0, tensor.rows)]).toEqual([...data]);
			}
			weights.close();
		});
	}

	it("undoes the pairing of q and k rows for any range of rows", () => {
		const weights = open(encodeGguf(model));
		fc.assert(
			fc.property(fc.nat(63), fc.nat(63), (a, b) => {
				const first = Math.min(a, b);
				const count = Math.abs(a - b) + 1;
				const name = "model.layers.1.self_attn.q_proj.weight";
				const expected = model.tensors.get(name)!.data.subarray(first * 64, (first + count) * 64);
				expect([...weights.readRows(name, first, count)]).toEqual([...expected]);
			}),
		);
		weights.close();
	});

	it("reads every type of metadata value", () => {
		const header = new GgufEncoder().bytes(Buffer.from("GGUF")).u32(3).u64(0).u64(14);
		const fixed = (key: string, type: number, bytes: number[]) =>
			header.string(key).u32(type).bytes(Uint8Array.from(bytes));
		fixed("u8", 0, [200]);
		fixed("i8", 1, [0xff]);
		fixed("u16", 2, [0x34, 0x12]);
		fixed("i16", 3, [0xfe, 0xff]);
		fixed("u32", 4, [0xff, 0xff, 0xff, 0xff]);
		fixed("i32", 5, [0xfd, 0xff, 0xff, 0xff]);
		fixed("f32", 6, [0, 0, 0x80, 0x3f]);
		fixed("bool", 7, [1]);
		fixed("u64", 10, [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
		fixed("i64", 11, [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
		fixed("f64", 12, [0, 0, 0, 0, 0, 0, 0x04, 0xc0]);
		header.string("text").value("ü");
		header.string("names").value(["a", "", "né"]);
		header.string("nested").u32(9).u32(9).u64(1).u32(5).u64(2).u32(7).u32(9);
		const weights = open(header.finish());
		expect(Object.fromEntries(weights.header.metadata)).toEqual({
			u8: 200,
			i8: -1,
			u16: 0x1234,
			i16: -2,
			u32: 0xffffffff,
			i32: -3,
			f32: 1,
			bool: true,
			u64: 2n ** 64n - 1n,
			i64: -2,
			f64: -2.5,
			text: "ü",
			names: ["a", "", "né"],
			nested: [new Int32Array([7, 9])],
		});
		weights.close();
	});

	it("names a tensor of a type that cannot be read, and what can", () => {
		const header = new GgufEncoder().bytes(Buffer.from("GGUF")).u32(3).u64(1).u64(0);
		header.string("blk.0.ffn_up.weight").u32(1).u64(256).u32(18).u64(0);
		const bytes = Buffer.concat([header.finish(), Buffer.alloc(4096)]);
		expect(() => open(bytes)).toThrow(/blk\.0\.ffn_up\.weight has the type IQ3_XXS.*F32, F16, BF16, Q8_0, Q4_0, Q4_1/);
	});

	it("names the file and the place where a file is cut short, wherever that is", () => {
		const metadata: TinyGgufOptions["metadata"] = { "tokenizer.ggml.tokens": ["a", "b", "c"] };
		const whole = encodeGguf(model, { metadata });
		fc.assert(
			fc.property(fc.nat(whole.length - 33), (length) => {
				const path = write(whole.subarray(0, length));
				try {
					new GgufWeights(path);
					expect.unreachable();
				} catch (error) {
					expect(error).toBeInstanceOf(ModelFileError);
					expect((error as Error).message).toContain(path);
					expect((error as Error).message).toMatch(/cut short|does not begin/);
				}
			}),
			{ numRuns: 60 },
		);
	});

	it("fails with its own error on corrupt headers", () => {
		const whole = encodeGguf(model);
		fc.assert(
			fc.property(fc.array(fc.tuple(fc.nat(2000), fc.nat(255)), { minLength: 1, maxLength: 8 }), (changes) => {
				const bytes = Buffer.from(whole);
				for (const [at, value] of changes) bytes[at] = value;
				try {
					open(bytes).close();
				} catch (error) {
					expect(error).toBeInstanceOf(ModelFileError);
				}
			}),
			{ numRuns: 200 },
		);
	});

	it("refuses other versions and big-endian files", () => {
		const bytes = encodeGguf(model);
		bytes.writeUInt32LE(1, 4);
		expect(() => open(bytes)).toThrow(/version 1; versions 2 and 3/);
		bytes.writeUInt32BE(3, 4);
		expect(() => open(bytes)).toThrow(/big endian/);
	});

	it("reads 150,000 strings at once", () => {
		const tokens = Array.from({ length: 150_000 }, (_, i) => `token${i}`);
		const weights = open(encodeGguf(model, { metadata: { "tokenizer.ggml.tokens": tokens } }));
		expect(weights.header.metadata.get("tokenizer.ggml.tokens")).toEqual(tokens);
		weights.close();
	});
});
