// SPDX-License-Identifier: Apache-2.0
// What a prefill worker tells a decode worker, through whatever frontend is between them: `kv_transfer_params`. Only
// strings, booleans and small numbers, so that JSON and msgpack carry it unchanged.
import { createHash } from "node:crypto";
import type { KvLayout } from "@dynamo-ts/engine";
import { blockHashes, blockSeed, tokensHash } from "@dynamo-ts/protocols/internal";

const VERSION = 2;
/** Bytes of a handle. */
export const HANDLE_BYTES = 16;
const HANDLE = /^[0-9a-f]{32}$/;

/** Where the keys and values of a prompt can be fetched, and what they are. */
export interface KvTransferParams {
	readonly version: number;
	readonly host: string;
	readonly port: number;
	/** 128 random bits, hex: who knows it may fetch. */
	readonly handle: string;
	/** Of the layout of the blocks, see `fingerprint`. */
	readonly fingerprint: string;
	/** Tokens of the prompt. */
	readonly tokens: number;
	/** Dynamo's chained hashes of the full blocks, hex. */
	readonly block_hashes: readonly string[];
	/** Hash of the tokens behind them, hex. */
	readonly tail_hash: string;
	/** Equal where both workers see the same shared memory. */
	readonly memory: string;
}

/** Equal where the blocks of one engine are of use to another. */
export function fingerprint(layout: KvLayout): string {
	const { modelSum, dtype, order, blockSize, blockBytes, numLayers, numKvHeads, headDim } = layout;
	const parts = [VERSION, modelSum, dtype, order, blockSize, blockBytes, numLayers, numKvHeads, headDim];
	return createHash("sha256").update(JSON.stringify(parts)).digest("hex").slice(0, 32);
}

/** Which prompt it is. */
export function promptHashes(
	tokenIds: ArrayLike<number>,
	blockSize: number,
	cacheSalt: string,
): Pick<KvTransferParams, "tokens" | "block_hashes" | "tail_hash"> {
	const tokens = Int32Array.from(tokenIds);
	const { sequenceHashes } = blockHashes(tokens, blockSize, { cacheSalt });
	const full = sequenceHashes.length * blockSize;
	return {
		tokens: tokens.length,
		block_hashes: sequenceHashes.map((hash) => hash.toString(16)),
		tail_hash: tokensHash(tokens, full, tokens.length, blockSeed({ cacheSalt })).toString(16),
	};
}

/** `params` as a prefill worker gives it to its frontend. */
export function toDisaggregatedParams(params: Omit<KvTransferParams, "version"> | null): unknown {
	return { kv_transfer_params: params === null ? null : { version: VERSION, ...params } };
}

/**
 * Reads `disaggregated_params` of a prefill result.
 * @returns null where the prefill worker kept nothing; undefined for anything that is not ours or not valid.
 */
export function parseDisaggregatedParams(value: unknown): KvTransferParams | null | undefined {
	const params = isRecord(value) ? value.kv_transfer_params : undefined;
	if (params === null) return null;
	if (!isRecord(params) || params.version !== VERSION) return undefined;
	const { host, port, handle, tokens, block_hashes } = params;
	const isText = (text: unknown): text is string => typeof text === "string" && text.length <= 256;
	const isCount = (count: unknown, most: number) =>
		Number.isInteger(count) && Number(count) >= 0 && Number(count) <= most;
	if (!isText(host) || host === "" || !isCount(port, 65_535) || port === 0) return undefined;
	if (!isText(handle) || !HANDLE.test(handle) || !isCount(tokens, 2 ** 31)) return undefined;
	if (!isText(params.fingerprint) || !isText(params.tail_hash) || !isText(params.memory)) return undefined;
	if (!Array.isArray(block_hashes) || !block_hashes.every(isText)) return undefined;
	return params as unknown as KvTransferParams;
}

/** Whether the params are of this prompt. */
export function isSamePrompt(params: KvTransferParams, own: ReturnType<typeof promptHashes>): boolean {
	if (params.tokens !== own.tokens || params.tail_hash !== own.tail_hash) return false;
	if (params.block_hashes.length !== own.block_hashes.length) return false;
	return own.block_hashes.every((hash, i) => hash === params.block_hashes[i]);
}

function isRecord(value: unknown): value is Record<string, unknown> {
	return typeof value === "object" && value !== null && !Array.isArray(value);
}
