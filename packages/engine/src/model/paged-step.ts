// SPDX-License-Identifier: Apache-2.0
// A step of a graph with paged cache as the flat integers that it reads: packed tokens, lengths, block tables and the
// tokens whose logits are wanted. Pure; where the integers go is the caller's.

import type { RunnerRow } from "./model-runner.js";

/** A part of a row that one run computes: its tokens start .. end - 1. */
export interface Segment {
	readonly row: RunnerRow;
	readonly start: number;
	readonly end: number;
	/** Logits are wanted of so many last tokens of this part. */
	readonly wanted: number;
}

/** What one run may hold. */
export interface RunLimits {
	readonly tokens: number;
	/** Rows of the block table. */
	readonly batch: number;
	/** Tokens whose logits are wanted. */
	readonly wanted: number;
}

/** Sizes of one run. */
export interface RunShape {
	readonly tokens: number;
	readonly batch: number;
	/** Columns of the block table. */
	readonly columns: number;
	readonly wanted: number;
}

/** Where each input begins, in int32 numbers. */
export interface RunLayout {
	readonly ids: number;
	/** [batch + 1] */
	readonly cumulative: number;
	/** [batch] */
	readonly past: number;
	/** [batch, columns] */
	readonly table: number;
	/** [wanted] */
	readonly rows: number;
	/** All of it. */
	readonly length: number;
}

/** Inputs begin at multiples of 256 bytes, as device memory is best read. */
const ALIGNMENT = 64;

function aligned(length: number): number {
	return Math.ceil(length / ALIGNMENT) * ALIGNMENT;
}

/** The layout of a run's integers; it depends on the sizes alone. */
export function runLayout({ tokens, batch, columns, wanted }: RunShape): RunLayout {
	const cumulative = aligned(tokens);
	const past = cumulative + aligned(batch + 1);
	const table = past + aligned(batch);
	const rows = table + aligned(batch * columns);
	return { ids: 0, cumulative, past, table, rows, length: rows + aligned(wanted) };
}

/** Divides a step into runs within the limits; a row that is too long goes on in the next run. */
export function splitStep(rows: readonly RunnerRow[], limits: RunLimits): Segment[][] {
	const runs: Segment[][] = [];
	let run: Segment[] = [];
	let tokens = 0;
	let wanted = 0;
	const flush = (): void => {
		if (run.length > 0) runs.push(run);
		run = [];
		tokens = 0;
		wanted = 0;
	};
	for (const row of rows) {
		let start = row.start;
		const firstWanted = row.end - row.wanted;
		while (start < row.end) {
			if (run.length === limits.batch || tokens === limits.tokens) flush();
			let end = Math.min(row.end, start + limits.tokens - tokens);
			// Of the tokens from firstWanted on only so many more fit.
			end = Math.min(end, Math.max(firstWanted, start) + limits.wanted - wanted);
			if (end <= start) {
				flush();
				continue;
			}
			const count = Math.max(0, end - Math.max(firstWanted, start));
			run.push({ row, start, end, wanted: count });
			tokens += end - start;
			wanted += count;
			start = end;
		}
	}
	flush();
	return runs;
}

/**
 * Sizes of a run with no padding. At least one token's logits are computed, wanted or not: not every kernel of ONNX
 * Runtime bears tensors without elements.
 */
export function runShape(segments: readonly Segment[], blockSize: number): RunShape {
	let tokens = 0;
	let columns = 1;
	let wanted = 0;
	for (const segment of segments) {
		tokens += segment.end - segment.start;
		wanted += segment.wanted;
		columns = Math.max(columns, Math.ceil(segment.end / blockSize));
	}
	return { tokens, batch: segments.length, columns, wanted: Math.max(1, wanted) };
}

/** What `writeRun` needs beside the parts. */
export interface RunWriting {
	readonly shape: RunShape;
	readonly blockSize: number;
	/** Added to each block id: blocks before are not handed out. */
	readonly firstBlock: number;
}

/**
 * Writes a run's integers. Where the shape has more rows than there are parts, each further row computes one token 0
 * in block 0, and its logits are at the end.
 * @param out at least `runLayout(shape).length` long.
 */
export function writeRun(out: Int32Array, segments: readonly Segment[], writing: RunWriting): void {
	const { shape, blockSize, firstBlock } = writing;
	const layout = runLayout(shape);
	let token = 0;
	let wanted = 0;
	out[layout.cumulative] = 0;
	// Columns that a row does not use name block 0, like the rows of the padding.
	out.fill(0, layout.table, layout.table + shape.batch * shape.columns);
	for (let i = 0; i < shape.batch; i++) {
		const segment = segments[i];
		if (segment === undefined) {
			out[layout.ids + token] = 0;
			out[layout.rows + wanted++] = token++;
			out[layout.past + i] = 0;
		} else {
			const { row, start, end } = segment;
			out.set(row.tokens.subarray(start, end), layout.ids + token);
			token += end - start;
			for (let w = segment.wanted; w > 0; w--) out[layout.rows + wanted++] = token - w;
			out[layout.past + i] = start;
			const blocks = Math.ceil(end / blockSize);
			const table = layout.table + i * shape.columns;
			for (let block = 0; block < blocks; block++) out[table + block] = row.blocks[block]! + firstBlock;
		}
		out[layout.cumulative + i + 1] = token;
	}
	out.fill(0, layout.rows + wanted, layout.rows + shape.wanted);
}

/** Sizes to which a decode step is padded, so that few graphs serve all: each is captured once. */
export function captureBatches(maxBatch: number): number[] {
	const sizes: number[] = [];
	for (
		let size = 1;
		size < maxBatch;
		size = size < 8 ? size * 2 : size < 32 ? size + 8 : size < 128 ? size + 16 : size + 32
	) {
		sizes.push(size);
	}
	return [...sizes, maxBatch];
}

/** Widths of the block table in captured steps: 8, 16, 32 ... up to `maxColumns`. */
export function captureColumns(maxColumns: number): number[] {
	const widths: number[] = [];
	for (let width = 8; width < maxColumns; width *= 2) widths.push(width);
	return [...widths, maxColumns];
}
