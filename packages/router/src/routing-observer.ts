// SPDX-License-Identifier: Apache-2.0

/** What the policy "kv" knew when a request was given to a worker, and how long it took to know it. */
export interface Selection {
	/** Tokens of a block. */
	readonly blockSize: number;
	/** Blocks of the prompt, the last partial one included. */
	readonly promptBlocks: number;
	/** How many of them the chosen worker holds in device memory, and the one that could have been chosen with most. */
	readonly overlapBlocks: number;
	readonly mostOverlapBlocks: number;
	/** Milliseconds. */
	readonly blockHashingMs: number;
	readonly seqHashingMs: number;
	readonly findMatchesMs: number;
	readonly schedulingMs: number;
}

/** Told what becomes of the requests of a group; a request is named as in the router's own calls. */
export interface RoutingObserver {
	onStart(requestId: string, promptTokens: number): void;
	onFirstItem(requestId: string): void;
	onTokens(requestId: string, tokens: number): void;
	/** The worker says how many prompt tokens it did not have to compute. */
	onReused(requestId: string, tokens: number): void;
	/** A prompt that another worker computed was at hand, `seconds` after that was done; at most once per request. */
	onHandedOver(seconds: number): void;
	onEnd(requestId: string): void;
	onSelection(selection: Selection): void;
}
