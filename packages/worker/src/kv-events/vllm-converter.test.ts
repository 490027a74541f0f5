// SPDX-License-Identifier: Apache-2.0
// Events in vLLM's format turned into those of routers: hashes, what is left out, what is refused.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { blockHashes, decodeVllmBatch, tokensHash, type VllmStored } from "@dynamo-ts/protocols/internal";
import { PROJECT_ROOT } from "@dynamo-ts/testing/internal";
import { describe, expect, it } from "vitest";
import { VllmConverter } from "./vllm-converter.js";

describe("converting vLLM's events", () => {
	const event = (overrides: Partial<VllmStored>): VllmStored => ({
		type: "stored",
		tier: "device",
		remote: false,
		secondary: false,
		blockHashes: [1n],
		parentHash: undefined,
		tokenIds: [1, 2, 3, 4],
		pairs: false,
		blockSize: 4,
		loraName: undefined,
		cacheSalt: undefined,
		mmObjects: undefined,
		...overrides,
	});

	it("what the mocker of Dynamo 1.6.1 published gets the hashes that it told routers", () => {
		const file = join(PROJECT_ROOT, "packages/protocols/fixtures/kv/engine_zmq_vllm_frames_mocker.json");
		const frames = JSON.parse(readFileSync(file, "utf8")) as { src: string; frames_hex: string[] }[];
		const converter = new VllmConverter(16);
		let blocks = 0;
		for (const { src, frames_hex } of frames) {
			if (src !== "pub") continue;
			for (const { data } of converter.convert(decodeVllmBatch(Buffer.from(frames_hex[2]!, "hex")).events)) {
				if (data.type !== "stored") continue;
				blocks += data.blocks.length;
				// The mocker names a prompt's first block by its tokens alone, as Dynamo does.
				if (data.parentHash === undefined) expect(data.blocks[0]!.blockHash).toBe(data.blocks[0]!.tokensHash);
			}
		}
		expect(blocks).toBeGreaterThan(20);
		expect(converter.skipped).toBe(0);
	});

	it("salt and adapter count in the hash, and are inherited from the block before", () => {
		const converter = new VllmConverter(4);
		converter.convert([event({ cacheSalt: "tenant-a", loraName: "l" })]);
		const [change] = converter.convert([event({ blockHashes: [2n], parentHash: 1n })]);
		const { tokensHashes } = blockHashes([1, 2, 3, 4], 4, { cacheSalt: "tenant-a", loraName: "l" });
		expect(change!.data).toMatchObject({ blocks: [{ blockHash: 2n, tokensHash: tokensHashes[0] }] });
	});

	it("pictures count in the hash and are told", () => {
		const [change] = new VllmConverter(4).convert([
			event({
				mmObjects: [
					[
						{ mmHash: 7n, offsets: [[0, 2]] },
						{ mmHash: 3n, offsets: [] },
					],
				],
			}),
		]);
		expect(change!.data).toMatchObject({
			blocks: [
				{ tokensHash: tokensHash([1, 2, 3, 4], 0, 4, 1337n, [3n, 7n]), mmObjects: [{ mmHash: 7n }, { mmHash: 3n }] },
			],
		});
	});

	it("pairs make windows of one token more", () => {
		const tokenIds = [1, 2, 3, 4, 5, 6, 7, 8, 9];
		const [change] = new VllmConverter(4).convert([event({ blockHashes: [1n, 2n], tokenIds, pairs: true })]);
		expect(change!.data).toMatchObject({
			blocks: [{ tokensHash: tokensHash(tokenIds, 0, 5, 1337n) }, { tokensHash: tokensHash(tokenIds, 4, 9, 1337n) }],
		});
	});

	it("a block with too few tokens ends the list; one that comes twice too", () => {
		const converter = new VllmConverter(4);
		expect(converter.convert([event({ blockHashes: [1n, 2n], tokenIds: [1, 2, 3, 4, 5] })])[0]!.data).toMatchObject({
			blocks: [{ blockHash: 1n }],
		});
		expect(
			converter.convert([event({ blockHashes: [3n, 3n], tokenIds: [1, 2, 3, 4, 5, 6, 7, 8] })])[0]!.data,
		).toMatchObject({
			blocks: [{ blockHash: 3n }],
		});
		expect(converter.convert([event({ blockHashes: [4n], tokenIds: [] })])).toEqual([]);
		expect(converter.skipped).toBe(3);
	});

	it("what lies elsewhere or sees only a window is left out; tiers are kept apart", () => {
		const converter = new VllmConverter(4);
		expect(converter.convert([event({ remote: true }), event({ secondary: true, blockSize: 99 })])).toEqual([]);
		expect(converter.convert([event({ tier: "host_pinned" })])).toMatchObject([{ tier: "host_pinned" }]);
		expect(converter.size).toBe(1);
	});

	it("a block that is held twice is gone when both are", () => {
		const converter = new VllmConverter(4);
		const removed = { type: "removed", tier: "device", remote: false, secondary: false, blockHashes: [1n] } as const;
		converter.convert([event({}), event({})]);
		expect(converter.convert([removed])).toEqual([]);
		expect(converter.convert([removed])).toMatchObject([{ data: { blockHashes: [1n] } }]);
		expect(converter.convert([removed])).toMatchObject([{ data: { blockHashes: [1n] } }]);
		converter.convert([event({})]);
		expect(converter.convert([{ type: "cleared" }])).toEqual([{ data: { type: "cleared" } }]);
		expect(converter.size).toBe(0);
	});

	it("blocks of another size are refused, with both numbers", () => {
		expect(() => new VllmConverter(16).convert([event({})])).toThrow(
			"the engine's blocks hold 4 tokens, those of the model card 16",
		);
	});
});
