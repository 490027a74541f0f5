// SPDX-License-Identifier: Apache-2.0
import { totalmem } from "node:os";
import { describe, expect, it } from "vitest";
import { chooseMaxModelLen, kvBytesPerToken } from "./cache-memory.js";

const GIB = 2 ** 30;
/** Sizes of an 8B Llama: 256 KiB of fp32 cache per token. */
const config = { numLayers: 32, numKvHeads: 8, headDim: 128, maxPositionEmbeddings: 131_072 };
const sizing = { config, numSlots: 8, weightBytes: 8 * GIB, memoryBytes: 32 * GIB };

describe("chooseMaxModelLen", () => {
	it("counts keys and values of all layers", () => {
		expect(kvBytesPerToken(config)).toBe(256 * 1024);
	});

	it("takes 4096 tokens, or what the model was made for, or what fits", () => {
		expect(chooseMaxModelLen(undefined, sizing)).toBe(4096);
		expect(chooseMaxModelLen(undefined, { ...sizing, config: { ...config, maxPositionEmbeddings: 512 } })).toBe(512);
		// (12 * 0.9 - 8) GiB over 2 MiB per token of all slots.
		expect(chooseMaxModelLen(undefined, { ...sizing, memoryBytes: 12 * GIB })).toBe(1433);
	});

	it("takes what is asked for where it fits, and refuses with numbers where not", () => {
		expect(chooseMaxModelLen(10_000, sizing)).toBe(10_000);
		expect(() => chooseMaxModelLen(131_072, sizing)).toThrow(
			/8 sequences of 131072 tokens need 256\.0 GiB of cache \(262144 bytes per token\) beside 8\.0 GiB of weights, more than the 32\.0 GiB of memory allow; .*at most 10649 with 8 sequences/,
		);
		expect(() => chooseMaxModelLen(131_073, sizing)).toThrow(/made for 131072 tokens/);
		expect(() => chooseMaxModelLen(undefined, { ...sizing, memoryBytes: 8 * GIB })).toThrow(/at most 0 with 8/);
	});

	it("knows the memory of this machine", () => {
		const { memoryBytes: _, ...here } = sizing;
		const tokens = chooseMaxModelLen(1, { ...here, weightBytes: 0 });
		expect(tokens).toBe(1);
		const tooMany = Math.ceil(totalmem() / (kvBytesPerToken(config) * 8));
		const long = { ...config, maxPositionEmbeddings: tooMany };
		expect(() => chooseMaxModelLen(tooMany, { ...here, config: long })).toThrow(/bytes per token/);
	});
});
