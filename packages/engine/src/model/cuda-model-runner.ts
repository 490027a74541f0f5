// SPDX-License-Identifier: Apache-2.0
// Executes steps of a graph with paged attention on a device. A step is one upload of integers, one run, and one
// download of the likeliest tokens; weights, cache and logits stay on the device.

import { DEVICE_TOP_K } from "../onnx/paged-attention-emitter.js";
import { rotaryTables } from "../onnx/rope-cache.js";
import { CudaError } from "../ort/cuda-error.js";
import { NO_GRAPH } from "../ort/cuda-session.js";
import type { PinnedMemory } from "../ort/cudart.js";
import { OrtError } from "../ort/ort-error.js";
import type { Pointer } from "../ort/ort-library.js";
import { ElementType } from "../ort/ort-session.js";
import { encodeF16 } from "../weights/float-formats.js";
import type { ModelConfig, ModelRunner, RunnerRow, StepLogits } from "./model-runner.js";
import { PagedBuffers } from "./paged-buffers.js";
import { chooseNumBlocks, pagedBlockBytes, pagedBlockSize } from "./paged-cache-memory.js";
import type { PagedBinding, PagedDevice, PagedTensor } from "./paged-device.js";
import {
	captureBatches,
	captureColumns,
	type RunLimits,
	type RunShape,
	runShape,
	type Segment,
	splitStep,
	writeRun,
} from "./paged-step.js";

/** Logits of all wanted tokens of a run may take so many bytes, unless a decode step alone needs more. */
const MAX_LOGITS_BYTES = 256 * 2 ** 20;
/** Blocks before the first one that is handed out: block 0 takes what padding writes. */
const SCRATCH_BLOCKS = 1;
/** cudaErrorMemoryAllocation */
const OUT_OF_MEMORY = 2;

/** What the runner is made of. */
export interface CudaModelRunnerOptions {
	readonly config: ModelConfig;
	/** With the graph of this model loaded. The runner closes it. */
	readonly device: PagedDevice;
	/** Tokens of prompt and output together; default: what the model was made for, or what fits. */
	readonly maxModelLen?: number | undefined;
	/** Rows in a step. */
	readonly maxNumSeqs: number;
	/** Tokens in one run; a longer step is several runs. */
	readonly maxNumBatchedTokens: number;
	/** Tokens per block; default: what the fastest attention kernel wants. */
	readonly blockSize?: number | undefined;
	/** Share of the device's memory that may be used, weights included. */
	readonly gpuMemoryUtilization: number;
	/** Bytes for keys and values; default: what the share leaves. */
	readonly kvCacheMemory?: number | undefined;
	/** Whether decode steps are captured and replayed; default true. */
	readonly capture?: boolean | undefined;
	/** See `ModelRunner.weightFormats`. */
	readonly weightFormats: readonly string[];
	/** Gives `ModelRunner.modelSum`, once the tokens of a sequence are known. */
	modelSum(maxModelLen: number): string;
	/** Called as steps are captured; `fraction` runs from 0 to 1. */
	onCapture?(fraction: number): void;
}

/** A captured decode step. */
interface CapturedStep {
	readonly shape: RunShape;
	readonly binding: PagedBinding;
	/** Number of the graph. */
	readonly graph: number;
}

/** True where ONNX Runtime's arena, or the device under it, had no room. */
function isOutOfMemory(error: unknown): boolean {
	if (error instanceof CudaError) return error.code === OUT_OF_MEMORY;
	return (
		error instanceof OrtError &&
		/out of memory|failed to allocate memory|smaller than requested bytes/i.test(error.message)
	);
}

/** A ModelRunner with paged cache on a device. */
export class CudaModelRunner implements ModelRunner {
	readonly device = "cuda";
	readonly config: ModelConfig;
	readonly maxModelLen: number;
	readonly maxNumSeqs: number;
	readonly blockSize: number;
	readonly numBlocks: number;
	readonly kvBytesPerToken: number;
	readonly kvCacheDtype = "fp16";
	readonly blockBytes: number;
	readonly blockOrder = "layer,side,token,head,dim";
	readonly modelSum: string;
	readonly weightFormats: readonly string[];
	readonly #device: PagedDevice;
	readonly #limits: RunLimits;
	readonly #k: number;
	readonly #buffers: PagedBuffers;
	readonly #rotary: { readonly name: string; readonly tensor: PagedTensor }[] = [];
	/** Keys of layer 0, values of layer 0, keys of layer 1 ... */
	readonly #cache: Pointer[] = [];
	/** Of uncaptured runs; what depends on sizes is bound anew each time. */
	readonly #eager: PagedBinding;
	readonly #metadata = new Int32Array(new ArrayBuffer(12));
	readonly #batches: readonly number[];
	readonly #columns: readonly number[];
	/** By `batches` index * columns count + `columns` index. */
	readonly #captured: CapturedStep[] = [];
	/** For blocks on their way out or in; made when first needed. */
	#block: PinnedMemory | undefined;

	/** Wanted tokens of the step; those of all runs but the last have their logits in `#rows`. */
	#wanted = 0;
	#lastRunBegin = 0;
	/** Host copies of logits by wanted token; memory is reused from step to step. */
	readonly #rows: Float32Array[] = [];
	/** Which of `#rows` are of this step. */
	#fetched: boolean[] = [];
	#topIds = new Int32Array(0);
	#topLogits = new Float32Array(0);
	#logSumExp = new Float32Array(0);

	/**
	 * @throws RangeError when the cache does not fit, OrtError when a step is refused, CudaError when memory is short.
	 */
	constructor(options: CudaModelRunnerOptions) {
		const { config, device, maxNumSeqs } = options;
		this.config = config;
		this.maxNumSeqs = maxNumSeqs;
		this.weightFormats = options.weightFormats;
		this.blockSize = pagedBlockSize(config, options.blockSize);
		this.#device = device;
		this.#k = Math.min(DEVICE_TOP_K, config.vocabSize);
		const blockBytes = pagedBlockBytes(config, this.blockSize);
		this.blockBytes = blockBytes;
		this.kvBytesPerToken = blockBytes / this.blockSize;
		const longest = options.maxModelLen ?? config.maxPositionEmbeddings;
		const tokens = Math.max(options.maxNumBatchedTokens, maxNumSeqs);
		const logitsRows = Math.floor(MAX_LOGITS_BYTES / (config.vocabSize * 4));
		this.#limits = { tokens, batch: maxNumSeqs, wanted: Math.max(maxNumSeqs, Math.min(tokens, logitsRows)) };
		const columns = Math.ceil(longest / this.blockSize);
		this.#buffers = new PagedBuffers(device, this.#limits, columns, config.vocabSize, this.#k);
		this.#uploadRotary(longest);
		this.#eager = device.createBinding();
		this.#bindRotary(this.#eager);
		this.#warmUp(longest);
		const sizing = chooseNumBlocks({
			blockBytes,
			blockSize: this.blockSize,
			askedBytes: options.kvCacheMemory,
			askedModelLen: options.maxModelLen,
			longest,
			utilization: options.gpuMemoryUtilization,
			memory: device.memoryInfo(),
			scratchBlocks: SCRATCH_BLOCKS,
		});
		this.numBlocks = sizing.numBlocks;
		this.maxModelLen = sizing.maxModelLen;
		this.modelSum = options.modelSum(this.maxModelLen);
		for (let i = 0; i < config.numLayers * 2; i++) {
			this.#cache.push(device.allocate((blockBytes / (config.numLayers * 2)) * (this.numBlocks + SCRATCH_BLOCKS)));
		}
		this.#bindCache(this.#eager, this.#cache, this.numBlocks + SCRATCH_BLOCKS);
		this.#batches = options.capture === false ? [] : captureBatches(maxNumSeqs);
		this.#columns = captureColumns(Math.ceil(this.maxModelLen / this.blockSize));
		this.#capture(options.onCapture);
	}

	#uploadRotary(positions: number): void {
		for (const { name, width, values } of rotaryTables(this.config, positions)) {
			const halves = encodeF16(values);
			const pinned = this.#device.allocatePinned(halves.byteLength);
			pinned.bytes.set(new Uint8Array(halves.buffer));
			const memory = this.#device.allocate(halves.byteLength);
			this.#device.upload(memory, pinned, halves.byteLength);
			this.#device.synchronize();
			this.#device.freePinned(pinned);
			const shape = [positions, width];
			this.#rotary.push({ name, tensor: { type: ElementType.FLOAT16, shape, memory, bytes: halves.byteLength } });
		}
	}

	#bindRotary(binding: PagedBinding): void {
		for (const { name, tensor } of this.#rotary) binding.input(name, tensor);
	}

	/** Binds the cache in place. @param memory of each layer's keys and values in turn. */
	#bindCache(binding: PagedBinding, memory: readonly Pointer[], blocks: number): void {
		const { numKvHeads, headDim, numLayers } = this.config;
		const shape = [blocks, this.blockSize, numKvHeads, headDim];
		const bytes = shape.reduce((product, size) => product * size, 2);
		for (let i = 0; i < numLayers * 2; i++) {
			const side = i % 2 === 0 ? "key" : "value";
			const tensor = { type: ElementType.FLOAT16, shape, memory: memory[i]!, bytes };
			binding.input(`${side}_cache.${i >> 1}`, tensor);
			binding.output(`${side}_cache_out.${i >> 1}`, tensor);
		}
	}

	/** Runs the largest step once, so that ONNX Runtime takes its memory before the cache is sized. */
	#warmUp(longest: number): void {
		const { config } = this;
		const bytes = this.blockSize * config.numKvHeads * config.headDim * 2;
		const block = this.#device.allocate(bytes);
		try {
			// All layers share one block: what is computed does not matter.
			this.#bindCache(this.#eager, Array(config.numLayers * 2).fill(block), 1);
			const rows: RunnerRow[] = [];
			const blocks = new Int32Array(Math.ceil(longest / this.blockSize)).fill(-SCRATCH_BLOCKS);
			let { tokens, wanted } = this.#limits;
			while (tokens > 0 && rows.length < this.maxNumSeqs) {
				const end = Math.min(tokens, longest);
				const row = {
					id: -1,
					tokens: new Int32Array(end),
					start: 0,
					end,
					blocks,
					wanted: Math.min(end, wanted),
					isPrefill: true,
				};
				rows.push(row);
				tokens -= end;
				wanted -= row.wanted;
			}
			this.#run(splitStep(rows, this.#limits)[0]!);
			this.#device.synchronize();
		} catch (cause) {
			if (!isOutOfMemory(cause)) throw cause;
			throw new RangeError(
				`a step of ${this.#limits.tokens} tokens does not fit beside the weights: ${(cause as Error).message}; ` +
					"use fewer tokens in a step (maxNumBatchedTokens) or a smaller model",
				{ cause },
			);
		} finally {
			this.#device.free(block);
		}
	}

	/** Captures a decode step of every size, before requests come: nothing else may use the device meanwhile. */
	#capture(onProgress: ((fraction: number) => void) | undefined): void {
		const total = this.#batches.length * this.#columns.length;
		for (const batch of this.#batches) {
			for (const [i, columns] of this.#columns.entries()) {
				const shape: RunShape = { tokens: batch, batch, columns, wanted: batch };
				const binding = this.#device.createBinding();
				this.#bindRotary(binding);
				this.#bindCache(binding, this.#cache, this.numBlocks + SCRATCH_BLOCKS);
				// Bounds that hold for every step of this size: one token per row, and of the longest row the width before.
				const shortest = i === 0 ? 1 : this.#columns[i - 1]! * this.blockSize + 1;
				this.#buffers.bind(binding, shape, Int32Array.of(1, columns * this.blockSize, shortest));
				const step = { shape, binding, graph: this.#captured.length + 1 };
				this.#captured.push(step);
				// Only rows of padding: they write to the scratch block.
				writeRun(this.#buffers.inputs, [], { shape, blockSize: this.blockSize, firstBlock: SCRATCH_BLOCKS });
				this.#buffers.upload(shape);
				this.#device.run(binding, step.graph);
				this.#device.synchronize();
				onProgress?.(this.#captured.length / total);
			}
		}
	}

	#check(row: RunnerRow): void {
		const { start, end, wanted, blocks, tokens } = row;
		if (!(start >= 0 && start < end && end <= this.maxModelLen && wanted >= 0 && wanted <= end - start)) {
			throw new RangeError(`tokens ${start} to ${end} with ${wanted} wanted do not fit ${this.maxModelLen}`);
		}
		const used = Math.ceil(end / this.blockSize);
		for (let i = 0; i < used; i++) {
			const block = blocks[i];
			if (!(block !== undefined && block >= 0 && block < this.numBlocks)) {
				throw new RangeError(`block ${block} at ${i} is not one of ${this.numBlocks}`);
			}
		}
		for (let i = start; i < end; i++) {
			const id = tokens[i];
			if (!(id !== undefined && id >= 0 && id < this.config.vocabSize)) {
				throw new RangeError(`token ${id} is not in the vocabulary of ${this.config.vocabSize}`);
			}
		}
	}

	/** See `ModelRunner.execute`. */
	execute(rows: readonly RunnerRow[]): StepLogits {
		let wanted = 0;
		let decode = this.#captured.length > 0 && rows.length <= this.maxNumSeqs;
		for (const row of rows) {
			this.#check(row);
			wanted += row.wanted;
			if (row.isPrefill || row.end - row.start !== 1 || row.wanted !== 1) decode = false;
		}
		this.#begin(wanted);
		const runs = splitStep(rows, this.#limits);
		let first = 0;
		for (const [i, segments] of runs.entries()) {
			const count = segments.reduce((sum, segment) => sum + segment.wanted, 0);
			const shape = decode ? this.#replay(segments) : this.#run(segments);
			this.#buffers.download(shape);
			this.#device.synchronize();
			this.#takeTop(shape, first, count);
			this.#lastRunBegin = first;
			// The next run overwrites the logits.
			if (i < runs.length - 1) for (let j = 0; j < count; j++) this.#fetch(first + j);
			first += count;
		}
		const length = wanted * this.#k;
		return {
			row: (i) => this.#row(i),
			top: {
				k: this.#k,
				ids: this.#topIds.subarray(0, length),
				logits: this.#topLogits.subarray(0, length),
				logSumExp: this.#logSumExp.subarray(0, wanted),
			},
		};
	}

	/** Makes room for a step's results. */
	#begin(wanted: number): void {
		this.#wanted = wanted;
		this.#lastRunBegin = 0;
		this.#fetched.fill(false);
		if (wanted <= this.#logSumExp.length) return;
		this.#topIds = new Int32Array(wanted * this.#k);
		this.#topLogits = new Float32Array(wanted * this.#k);
		this.#logSumExp = new Float32Array(wanted);
		this.#fetched = new Array<boolean>(wanted).fill(false);
	}

	/** Queues a decode step that was captured. */
	#replay(segments: readonly Segment[]): RunShape {
		const { columns } = runShape(segments, this.blockSize);
		const batch = this.#batches.findIndex((size) => size >= segments.length);
		const column = this.#columns.findIndex((width) => width >= columns);
		const { shape, binding, graph } = this.#captured[batch * this.#columns.length + column]!;
		writeRun(this.#buffers.inputs, segments, { shape, blockSize: this.blockSize, firstBlock: SCRATCH_BLOCKS });
		this.#buffers.upload(shape);
		this.#device.run(binding, graph);
		return shape;
	}

	/** Queues any other run. */
	#run(segments: readonly Segment[]): RunShape {
		const shape = runShape(segments, this.blockSize);
		let longestPart = 0;
		let longest = 0;
		for (const { start, end } of segments) {
			longestPart = Math.max(longestPart, end - start);
			longest = Math.max(longest, end);
		}
		this.#metadata[0] = longestPart;
		this.#metadata[1] = longest;
		this.#metadata[2] = longest;
		writeRun(this.#buffers.inputs, segments, { shape, blockSize: this.blockSize, firstBlock: SCRATCH_BLOCKS });
		this.#buffers.bind(this.#eager, shape, this.#metadata);
		this.#buffers.upload(shape);
		this.#device.run(this.#eager, NO_GRAPH);
		return shape;
	}

	/** Takes the likeliest tokens of a run over; its first wanted token is the step's token `first`. */
	#takeTop(shape: RunShape, first: number, count: number): void {
		const k = this.#k;
		const { logits, ids, logprobs } = this.#buffers.top(shape, count);
		this.#topIds.set(ids, first * k);
		this.#topLogits.set(logits, first * k);
		for (let i = 0; i < count; i++) this.#logSumExp[first + i] = logits[i * k]! - logprobs[i * k]!;
	}

	/** Copies the logits of a wanted token of the last run to the host. */
	#fetch(i: number): void {
		const row = this.#rows[i] ?? new Float32Array(this.config.vocabSize);
		this.#rows[i] = row;
		this.#buffers.readLogits(i - this.#lastRunBegin, row);
		this.#fetched[i] = true;
	}

	#row(i: number): Float32Array {
		if (!(i >= 0 && i < this.#wanted)) throw new RangeError(`token ${i} of ${this.#wanted} wanted ones`);
		if (!this.#fetched[i]) this.#fetch(i);
		return this.#rows[i]!;
	}

	/** Nothing to do: rows are computed in their blocks. */
	persist(_id: number, _index: number, _block: number): void {}

	/** Nothing to do: nothing is kept for a sequence alone. */
	release(_id: number): void {}

	/** Bytes of a block in one layer's keys or values. */
	get #partBytes(): number {
		return this.blockSize * this.config.numKvHeads * this.config.headDim * 2;
	}

	/** Checks a block and its bytes; gives pinned memory for them. */
	#blockMemory(block: number, bytes: Uint8Array): PinnedMemory {
		if (!(block >= 0 && block < this.numBlocks)) throw new RangeError(`block ${block} is not one of ${this.numBlocks}`);
		if (bytes.length !== this.blockBytes) {
			throw new RangeError(`a block has ${this.blockBytes} bytes, not ${bytes.length}`);
		}
		this.#block ??= this.#device.allocatePinned(this.blockBytes);
		return this.#block;
	}

	/** Reads a block: half precision, [layer][keys, values][token][kvHead][headDim]. */
	readBlock(block: number, into: Uint8Array): void {
		const pinned = this.#blockMemory(block, into);
		const offset = BigInt((block + SCRATCH_BLOCKS) * this.#partBytes);
		for (const [i, memory] of this.#cache.entries()) {
			this.#device.download(pinned, i * this.#partBytes, memory + offset, this.#partBytes);
		}
		this.#device.synchronize();
		into.set(pinned.bytes);
	}

	/** Writes a block in the form that `readBlock` gives. */
	writeBlock(block: number, data: Uint8Array): void {
		const pinned = this.#blockMemory(block, data);
		const offset = BigInt((block + SCRATCH_BLOCKS) * this.#partBytes);
		pinned.bytes.set(data);
		for (const [i, memory] of this.#cache.entries()) {
			this.#device.upload(memory + offset, pinned, this.#partBytes, i * this.#partBytes);
		}
		// The memory is used again by the next block.
		this.#device.synchronize();
	}

	/** Frees everything, the device's session included. */
	close(): void {
		for (const { binding } of this.#captured) binding.release();
		this.#captured.length = 0;
		this.#eager.release();
		this.#device.close();
	}
}
