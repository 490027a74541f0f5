// SPDX-License-Identifier: Apache-2.0
import { totalmem } from "node:os";
import { describe, expect, it } from "vitest";
import { type CacheRequest, kvBytesPerToken, sizeCpuCache } from "./cache-memory.js";

const GIB = 2 ** 30;
/** Sizes of an 8B Llama: 256 KiB of fp32 cache per token, so 4096 tokens are 1 GiB. */
const geometry = { numLayers: 32, numKvHeads: 8, headDim: 128, bytesPerElement: 4 };
const request: CacheRequest = {
	geometry,
	maxPositionEmbeddings: 131_072,
	weightBytes: 8 * GIB,
	memoryBytes: 40 * GIB,
};

describe("sizeCpuCache", () => {
	it("counts keys and values of all layers", () => {
		expect(kvBytesPerToken(geometry)).toBe(256 * 1024);
		expect(kvBytesPerToken({ ...geometry, bytesPerElement: 1 })).toBe(64 * 1024);
	});

	it("takes what fits when nothing is asked for: half for what runs", () => {
		// (40 * 0.9 - 8) GiB.
		expect(sizeCpuCache(request)).toEqual({ maxNumSeqs: 14, maxModelLen: 4096, blockSize: 16, numBlocks: 14 * 256 });
		expect(sizeCpuCache({ ...request, memoryBytes: 400 * GIB })).toMatchObject({ maxNumSeqs: 32, maxModelLen: 4096 });
		expect(sizeCpuCache({ ...request, maxPositionEmbeddings: 512 })).toMatchObject({
			maxNumSeqs: 32,
			maxModelLen: 512,
		});
		// 1 GiB: one sequence and its blocks.
		const tight = sizeCpuCache({ ...request, memoryBytes: 10 * GIB });
		expect(tight).toMatchObject({ maxNumSeqs: 1, maxModelLen: 2040 });
		expect(tight.numBlocks * 16).toBeGreaterThanOrEqual(2040);
	});

	it("keeps to what is asked for, and refuses with numbers what does not fit", () => {
		expect(sizeCpuCache({ ...request, maxNumSeqs: 2, maxModelLen: 10_000, blockSize: 64 })).toEqual({
			maxNumSeqs: 2,
			maxModelLen: 10_000,
			blockSize: 64,
			numBlocks: 313,
		});
		expect(sizeCpuCache({ ...request, kvCacheMemory: 3 * GIB, maxNumSeqs: 1 })).toMatchObject({ numBlocks: 256 });
		expect(() => sizeCpuCache({ ...request, maxNumSeqs: 8, maxModelLen: 131_072 })).toThrow(
			/8 sequences of 131072 tokens and blocks for one more need 288\.00 GiB of cache \(262144 bytes per token\), more than the 28\.00 GiB that 40\.00 GiB of memory leave beside 8\.00 GiB of weights; use fewer/,
		);
		expect(() => sizeCpuCache({ ...request, maxNumSeqs: 4, kvCacheMemory: GIB, maxModelLen: 4096 })).toThrow(
			/more than the 1\.00 GiB of kvCacheMemory/,
		);
		expect(() => sizeCpuCache({ ...request, kvCacheMemory: 50 * GIB })).toThrow(/leave 28\.00 GiB beside/);
		expect(() => sizeCpuCache({ ...request, maxModelLen: 131_073 })).toThrow(/made for 131072 tokens/);
		expect(() => sizeCpuCache({ ...request, memoryBytes: 8 * GIB })).toThrow(/leave beside/);
	});

	it("knows the memory of this machine", () => {
		const { memoryBytes: _, ...here } = request;
		expect(sizeCpuCache({ ...here, weightBytes: 0, maxModelLen: 1, maxNumSeqs: 1 })).toMatchObject({ maxModelLen: 1 });
		const tooMany = Math.ceil(totalmem() / kvBytesPerToken(geometry));
		expect(() => sizeCpuCache({ ...here, maxPositionEmbeddings: tooMany, maxModelLen: tooMany })).toThrow(/per token/);
	});
});
