// SPDX-License-Identifier: Apache-2.0
// Turns events in vLLM's format into those that routers read: cuts tokens into blocks, hashes them Dynamo's way, and leaves
// out what says nothing about a prefix on this worker.
import {
	blockSeed,
	blockTokensHashes,
	DynamoError,
	type RouterBlock,
	type RouterEventData,
	type StorageTier,
	tokensHash,
	type VllmEvent,
	type VllmStored,
} from "@dynamo-ts/protocols/internal";
import type { TieredChange } from "./kv-event-publisher.js";

/** What the hashes behind a block begin with, and how often the block was stored. */
interface Known {
	readonly loraName: string | undefined;
	readonly cacheSalt: string | undefined;
	uses: number;
}

export class VllmConverter {
	readonly #blockSize: number;
	/** Blocks that the engine holds, by tier. */
	readonly #known = new Map<string, Known>();
	/** Blocks that could not be told: too few tokens, or of another size. */
	skipped = 0;

	/** @param blockSize tokens per block, as the model card says. */
	constructor(blockSize: number) {
		this.#blockSize = blockSize;
	}

	/** Blocks that the engine holds. */
	get size(): number {
		return this.#known.size;
	}

	/**
	 * Converts one batch; the result may be shorter.
	 * @throws DynamoError `InvalidArgument` with both numbers when the engine's blocks have another size.
	 */
	convert(events: readonly VllmEvent[]): TieredChange[] {
		const changes: TieredChange[] = [];
		for (const event of events) {
			const change = this.#change(event);
			if (change !== undefined) changes.push(change);
		}
		return changes;
	}

	/** Forgets everything; for an engine that begins anew. */
	clear(): void {
		this.#known.clear();
	}

	#change(event: VllmEvent): TieredChange | undefined {
		if (event.type === "cleared") {
			this.clear();
			return { data: event };
		}
		if (event.remote || event.secondary) return undefined;
		const data = event.type === "stored" ? this.#stored(event) : this.#removed(event.blockHashes, event.tier);
		return data === undefined ? undefined : { data, tier: event.tier };
	}

	#stored(event: VllmStored): RouterEventData | undefined {
		const size = this.#blockSize;
		if (event.blockSize !== size) {
			const text = `the engine's blocks hold ${event.blockSize} tokens, those of the model card ${size}: start both with the same block size`;
			throw new DynamoError("InvalidArgument", text, { publicMessage: text });
		}
		// A salt stands with the first block alone: those behind inherit it.
		const parent = event.parentHash === undefined ? undefined : this.#known.get(key(event.tier, event.parentHash));
		const loraName = event.loraName ?? parent?.loraName;
		const cacheSalt = event.cacheSalt ?? parent?.cacheSalt;
		const seed = blockSeed({ loraName, cacheSalt });
		// With pairs a block's window holds the token behind it as well.
		const window = event.pairs ? size + 1 : size;
		const isPlain = !event.pairs && event.mmObjects === undefined;
		const hashes = isPlain ? blockTokensHashes(event.tokenIds, size, { loraName, cacheSalt }) : [];
		const blocks: RouterBlock[] = [];
		const seen = new Set<bigint>(event.parentHash === undefined ? [] : [event.parentHash]);
		for (const [i, blockHash] of event.blockHashes.entries()) {
			const start = i * size;
			if (start + window > event.tokenIds.length || seen.has(blockHash)) {
				this.skipped += event.blockHashes.length - i;
				break;
			}
			seen.add(blockHash);
			const mmObjects = event.mmObjects?.[i];
			const mmHashes = mmObjects?.map((object) => object.mmHash) ?? [];
			const own = hashes[i] ?? tokensHash(event.tokenIds, start, start + window, seed, mmHashes);
			const block = { blockHash, tokensHash: own };
			blocks.push(mmObjects === undefined ? block : { ...block, mmObjects });
			const name = key(event.tier, blockHash);
			const known = this.#known.get(name);
			if (known === undefined) this.#known.set(name, { loraName, cacheSalt, uses: 1 });
			else known.uses++;
		}
		return blocks.length === 0 ? undefined : { type: "stored", parentHash: event.parentHash, blocks };
	}

	/** An engine may hold a block more than once; it is gone when the last of them is. */
	#removed(hashes: readonly bigint[], tier: StorageTier): RouterEventData | undefined {
		const gone = hashes.filter((hash) => {
			const name = key(tier, hash);
			const known = this.#known.get(name);
			if (known === undefined) return true;
			known.uses--;
			if (known.uses > 0) return false;
			this.#known.delete(name);
			return true;
		});
		return gone.length === 0 ? undefined : { type: "removed", blockHashes: gone };
	}
}

function key(tier: StorageTier, hash: bigint): string {
	return `${tier}/${hash}`;
}
