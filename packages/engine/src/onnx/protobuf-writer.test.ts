// SPDX-License-Identifier: Apache-2.0
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ProtobufWriter } from "./protobuf-writer.js";
import { fields } from "./testing/onnx-reader.js";

/** [field, wire type, value] of each field. */
function read(bytes: Uint8Array): [number, number, bigint | Uint8Array][] {
	return Array.from(fields(bytes), ({ number, wire, value }) => [
		number,
		wire,
		typeof value === "bigint" ? value : value.slice(),
	]);
}

describe("ProtobufWriter", () => {
	it("writes the example of the encoding guide", () => {
		expect([...new ProtobufWriter().int(1, 150).finish()]).toEqual([0x08, 0x96, 0x01]);
		expect([...new ProtobufWriter().string(2, "testing").finish()]).toEqual([0x12, 7, ...Buffer.from("testing")]);
		const nested = new ProtobufWriter().message(3, (inner) => inner.int(1, 150));
		expect([...nested.finish()]).toEqual([0x1a, 3, 0x08, 0x96, 0x01]);
	});

	it("writes any int64 as two's complement", () => {
		fc.assert(
			fc.property(fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }), (value) => {
				const [field] = read(new ProtobufWriter().int(5, value).finish());
				expect(field).toEqual([5, 0, BigInt.asUintN(64, value)]);
			}),
		);
		fc.assert(
			fc.property(fc.maxSafeInteger(), (value) => {
				const [field] = read(new ProtobufWriter().int(5, value).finish());
				expect(field![2]).toBe(BigInt.asUintN(64, BigInt(value)));
			}),
		);
	});

	it("keeps bytes, floats and order while its buffer grows", () => {
		fc.assert(
			fc.property(fc.array(fc.uint8Array({ maxLength: 700 })), fc.float(), (chunks, number) => {
				const writer = new ProtobufWriter();
				for (const [i, chunk] of chunks.entries()) writer.bytes(i + 1, chunk);
				const fields = read(writer.float(1000, number).finish());
				expect(fields.slice(0, -1)).toEqual(chunks.map((chunk, i) => [i + 1, 2, chunk]));
				const float = Buffer.alloc(4);
				float.writeFloatLE(number);
				expect(fields.at(-1)).toEqual([1000, 5, new Uint8Array(float)]);
			}),
		);
	});
});
