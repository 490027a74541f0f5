// SPDX-License-Identifier: Apache-2.0
// The blocks that a worker holds now, as routers would know them: built from the events that it published, and told as
// events again, a parent always before its children.
import type { RouterBlock, RouterEventData } from "@dynamo-ts/protocols/internal";

interface Entry {
	readonly block: RouterBlock;
	readonly parentHash: bigint | undefined;
}

/** Blocks per dump event; a chain that is longer is continued in the next one. */
const MAX_BLOCKS_PER_EVENT = 1024;

export class BlockIndex {
	/** In the order in which blocks were stored. */
	readonly #entries = new Map<bigint, Entry>();

	/** Blocks held. */
	get size(): number {
		return this.#entries.size;
	}

	has(blockHash: bigint): boolean {
		return this.#entries.has(blockHash);
	}

	apply(data: RouterEventData): void {
		switch (data.type) {
			case "stored": {
				let { parentHash } = data;
				for (const block of data.blocks) {
					// Stored again: it may stand elsewhere now, and behind whatever came since.
					this.#entries.delete(block.blockHash);
					this.#entries.set(block.blockHash, { block, parentHash });
					parentHash = block.blockHash;
				}
				break;
			}
			case "removed":
				for (const hash of data.blockHashes) this.#entries.delete(hash);
				break;
			case "cleared":
				this.#entries.clear();
		}
	}

	/**
	 * "Stored" events that, applied to nothing, give these blocks. A block whose parent is gone cannot be found by any
	 * prompt and is left out.
	 */
	dump(): RouterEventData[] {
		const children = new Map<bigint | undefined, Entry[]>();
		for (const entry of this.#entries.values()) {
			const siblings = children.get(entry.parentHash);
			if (siblings === undefined) children.set(entry.parentHash, [entry]);
			else siblings.push(entry);
		}
		const events: RouterEventData[] = [];
		// Each item begins a chain; where a block has several children, the others begin chains of their own later.
		const starts: Entry[] = [...(children.get(undefined) ?? [])].reverse();
		for (let start = starts.pop(); start !== undefined; start = starts.pop()) {
			const blocks: RouterBlock[] = [];
			for (let at: Entry | undefined = start; at !== undefined; ) {
				blocks.push(at.block);
				const next: Entry[] = children.get(at.block.blockHash) ?? [];
				for (let i = next.length - 1; i > 0; i--) starts.push(next[i] as Entry);
				at = next[0];
				if (at !== undefined && blocks.length === MAX_BLOCKS_PER_EVENT) {
					starts.push(at);
					at = undefined;
				}
			}
			events.push({ type: "stored", parentHash: start.parentHash, blocks });
		}
		return events;
	}
}
