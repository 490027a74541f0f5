// SPDX-License-Identifier: Apache-2.0
// Keys and values of one engine for another, as the owner of an engine thread sees them. Where the cache is memory that
// both threads see, it is read and written in place, whatever the engine thread does meanwhile; a cache on a device is
// copied by the engine thread between two steps.

import type { KvFetch, KvLayout, KvPort } from "../engine.js";
import type { FetchNotice, ToThread } from "../thread-messages.js";
import { pin, unpin } from "./held-blocks.js";

/** Blocks in memory that several threads see. */
export interface SharedBlocks {
	readonly buffers: readonly SharedArrayBuffer[];
	readonly blocksPerBuffer: number;
	readonly blockBytes: number;
}

/** The bytes of a block. */
export function sharedBlock({ buffers, blocksPerBuffer, blockBytes }: SharedBlocks, block: number): Uint8Array {
	const at = (block % blocksPerBuffer) * blockBytes;
	return new Uint8Array(buffers[Math.floor(block / blocksPerBuffer)]!, at, blockBytes);
}

export interface KvPortOptions {
	readonly layout: KvLayout;
	/** Absent: the engine thread copies. */
	readonly shared: SharedBlocks | undefined;
	/** See `createHeldStates`. */
	readonly states: Int32Array;
	post(message: ToThread, transfer?: ArrayBuffer[]): void;
}

interface PendingRead {
	resolve(blocks: Uint8Array[] | undefined): void;
}

/** See `KvPort`. */
export class ThreadKvPort implements KvPort {
	readonly layout: KvLayout;
	private readonly options: KvPortOptions;
	/** Readers of what is being read; a release waits for the last. */
	private readonly readers = new Map<number, { count: number; release: boolean }>();
	private readonly reads = new Map<number, PendingRead>();
	private readonly fetches = new Map<number, OpenFetch>();
	private readonly givenUp: ((id: number) => void)[] = [];
	private nextRead = 1;

	constructor(options: KvPortOptions) {
		this.options = options;
		this.layout = options.layout;
	}

	onGivenUp(callback: (id: number) => void): void {
		this.givenUp.push(callback);
	}

	open(id: number): boolean {
		if (!pin(this.options.states, id)) return false;
		const readers = this.readers.get(id) ?? { count: 0, release: false };
		readers.count++;
		this.readers.set(id, readers);
		return true;
	}

	close(id: number): void {
		const readers = this.readers.get(id);
		if (readers === undefined) return;
		unpin(this.options.states, id);
		if (--readers.count > 0) return;
		this.readers.delete(id);
		if (readers.release) this.options.post({ type: "releaseHeld", id });
	}

	release(id: number): void {
		const readers = this.readers.get(id);
		if (readers !== undefined) readers.release = true;
		else this.options.post({ type: "releaseHeld", id });
	}

	read(id: number, blocks: readonly number[]): Promise<Uint8Array[] | undefined> {
		const { shared } = this.options;
		if (shared !== undefined) return Promise.resolve(blocks.map((block) => sharedBlock(shared, block)));
		const read = this.nextRead++;
		return new Promise((resolve) => {
			this.reads.set(read, { resolve });
			this.options.post({ type: "readBlocks", read, id, blocks });
		});
	}

	/** What the engine thread has read. */
	receiveRead(read: number, data: ArrayBuffer | undefined): void {
		const pending = this.reads.get(read);
		this.reads.delete(read);
		if (data === undefined) {
			pending?.resolve(undefined);
			return;
		}
		const { blockBytes } = this.layout;
		const count = data.byteLength / blockBytes;
		pending?.resolve(Array.from({ length: count }, (_, i) => new Uint8Array(data, i * blockBytes, blockBytes)));
	}

	/** The engine thread gave up what it kept. */
	receiveGivenUp(ids: readonly number[]): void {
		for (const id of ids) for (const tell of this.givenUp) tell(id);
	}

	/** A sequence has its blocks: `begin` is to fill them. Undefined where nobody wants to any more. */
	receiveFetch(notice: FetchNotice, begin: ((fetch: KvFetch) => void) | undefined): void {
		const { handle } = notice;
		const fetch = new OpenFetch(notice, this.options, () => this.fetches.delete(handle));
		if (begin === undefined) {
			fetch.finish(false);
			return;
		}
		this.fetches.set(handle, fetch);
		try {
			begin(fetch);
		} catch (cause) {
			process.emitWarning(cause instanceof Error ? cause : new Error(String(cause)));
			fetch.finish(false);
		}
	}

	/** Nobody waits any more for what a sequence fetches. */
	cancelFetch(handle: number): void {
		this.fetches.get(handle)?.cancel();
	}

	/** The engine thread is gone. */
	end(): void {
		for (const { resolve } of this.reads.values()) resolve(undefined);
		this.reads.clear();
		for (const fetch of [...this.fetches.values()]) fetch.cancel();
	}
}

/** See `KvFetch`. */
class OpenFetch implements KvFetch {
	readonly tokens: number;
	readonly firstBlock: number;
	readonly numBlocks: number;
	private readonly notice: FetchNotice;
	private readonly options: KvPortOptions;
	private readonly forget: () => void;
	private readonly staged = new Map<number, Uint8Array>();
	private readonly abort = new AbortController();
	private ended = false;

	constructor(notice: FetchNotice, options: KvPortOptions, forget: () => void) {
		this.notice = notice;
		this.options = options;
		this.forget = forget;
		this.tokens = notice.tokens;
		this.firstBlock = notice.firstBlock;
		this.numBlocks = notice.blocks.length;
	}

	get signal(): AbortSignal {
		return this.abort.signal;
	}

	memory(index: number): Uint8Array {
		const block = this.notice.blocks[index - this.firstBlock];
		if (block === undefined) throw new RangeError(`block ${index} is not wanted`);
		if (this.ended) throw new Error("the blocks are the engine's again");
		const { shared, layout } = this.options;
		if (shared !== undefined) return sharedBlock(shared, block);
		let memory = this.staged.get(index);
		if (memory === undefined) {
			memory = new Uint8Array(new ArrayBuffer(layout.blockBytes));
			this.staged.set(index, memory);
		}
		return memory;
	}

	written(index: number): void {
		const memory = this.staged.get(index);
		if (memory === undefined || this.ended) return;
		this.staged.delete(index);
		const data = memory.buffer as ArrayBuffer;
		this.options.post({ type: "writeBlock", handle: this.notice.handle, index, data }, [data]);
	}

	finish(complete: boolean): void {
		if (this.ended) return;
		this.ended = true;
		this.staged.clear();
		this.forget();
		this.options.post({ type: "fetched", handle: this.notice.handle, complete });
	}

	cancel(): void {
		this.abort.abort();
	}
}
