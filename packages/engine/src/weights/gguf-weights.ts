// SPDX-License-Identifier: Apache-2.0
// Tensors of a GGUF file under their canonical names.

import { FAMILIES, familyOfGguf } from "../model/families.js";
import { dequantize } from "./dequantize.js";
import { FileReader } from "./file-reader.js";
import { blockLayout } from "./gguf-blocks.js";
import { type GgufHeader, readGgufHeader } from "./gguf-header.js";
import { ModelFileError } from "./model-file-error.js";
import {
	READABLE_WEIGHT_TYPES,
	rowBytes,
	type WeightSource,
	type WeightTensor,
	type WeightType,
} from "./weight-source.js";

/** Names of ggml's tensor types by number, for messages; gaps are types that were withdrawn. */
const GGML_TYPES: Record<number, string> = {
	0: "F32",
	1: "F16",
	2: "Q4_0",
	3: "Q4_1",
	6: "Q5_0",
	7: "Q5_1",
	8: "Q8_0",
	9: "Q8_1",
	10: "Q2_K",
	11: "Q3_K",
	12: "Q4_K",
	13: "Q5_K",
	14: "Q6_K",
	15: "Q8_K",
	16: "IQ2_XXS",
	17: "IQ2_XS",
	18: "IQ3_XXS",
	19: "IQ1_S",
	20: "IQ4_NL",
	21: "IQ3_S",
	22: "IQ2_S",
	23: "IQ4_XS",
	24: "I8",
	25: "I16",
	26: "I32",
	27: "I64",
	28: "F64",
	29: "IQ1_M",
	30: "BF16",
	34: "TQ1_0",
	35: "TQ2_0",
	39: "MXFP4",
};

const TOP_NAMES: Record<string, string> = {
	"token_embd.weight": "model.embed_tokens.weight",
	"output_norm.weight": "model.norm.weight",
	"output.weight": "lm_head.weight",
	"output.bias": "lm_head.bias",
};

/** Modules of a layer, whose names have ".weight" or ".bias" added. */
const LAYER_MODULES: Record<string, string> = {
	attn_norm: "input_layernorm",
	attn_q: "self_attn.q_proj",
	attn_k: "self_attn.k_proj",
	attn_v: "self_attn.v_proj",
	attn_qkv: "self_attn.qkv_proj",
	attn_output: "self_attn.o_proj",
	attn_q_norm: "self_attn.q_norm",
	attn_k_norm: "self_attn.k_norm",
	post_attention_norm: "post_attention_layernorm",
	ffn_norm: "post_attention_layernorm",
	ffn_gate: "mlp.gate_proj",
	ffn_up: "mlp.up_proj",
	ffn_down: "mlp.down_proj",
	post_ffw_norm: "post_feedforward_layernorm",
};

/** Modules that mean something else in some architectures. */
const ARCHITECTURE_MODULES: Record<string, Record<string, string>> = {
	gemma2: { ffn_norm: "pre_feedforward_layernorm" },
	gemma3: { ffn_norm: "pre_feedforward_layernorm" },
	// Gate and up in one.
	phi3: { ffn_up: "mlp.gate_up_proj" },
};

/** Canonical name of a GGUF tensor; a name without a counterpart stays as it is. */
export function canonicalGgufName(name: string, architecture: string): string {
	const layer = /^blk\.(\d+)\.(\w+)\.(weight|bias)$/.exec(name);
	if (!layer) return TOP_NAMES[name] ?? name.replace(/^blk\.(?=\d)/, "model.layers.");
	const [, number, module, part] = layer as unknown as [string, string, string, string];
	const canonical = ARCHITECTURE_MODULES[architecture]?.[module] ?? LAYER_MODULES[module] ?? module;
	return `model.layers.${number}.${canonical}.${part}`;
}

interface StoredTensor extends WeightTensor {
	readonly offset: number;
	/** Rows of one head, when rows are stored in the order of interleaved rotary pairs; else 0. */
	readonly pairedHeadRows: number;
}

/**
 * Undoes the order of rotary pairs, which llama.cpp stores side by side for some architectures: its row 2i+j of a head
 * is row j * head/2 + i of Hugging Face.
 * @param stored whole heads
 * @param head rows of a head
 * @param first row that is wanted, counted from the first stored one
 * @param stride bytes of a row
 */
function unpaired(stored: Uint8Array, head: number, first: number, count: number, stride: number): Uint8Array {
	const out = new Uint8Array(count * stride);
	for (let i = 0; i < count; i++) {
		const row = first + i;
		const inHead = row % head;
		const pair = inHead % (head / 2);
		const source = row - inHead + 2 * pair + (inHead < head / 2 ? 0 : 1);
		out.set(stored.subarray(source * stride, (source + 1) * stride), i * stride);
	}
	return out;
}

/** Reads tensors of one GGUF file. */
export class GgufWeights implements WeightSource {
	readonly header: GgufHeader;
	readonly tensors: ReadonlyMap<string, StoredTensor>;
	/** Empty: a GGUF file with a type that cannot be read is refused as a whole. */
	readonly unreadable: ReadonlyMap<string, string> = new Map();
	readonly #file: FileReader;

	/**
	 * Opens the file and checks its tensor table.
	 * @param checkHeader may refuse the file before its tensors are looked at: another family says more than a type.
	 * @throws ModelFileError when it is corrupt or a tensor has a type that cannot be read.
	 */
	constructor(path: string, checkHeader?: (header: GgufHeader) => void) {
		this.#file = new FileReader(path);
		try {
			this.header = readGgufHeader(this.#file);
			checkHeader?.(this.header);
			this.tensors = this.#checkedTensors();
		} catch (error) {
			this.#file.close();
			throw error;
		}
	}

	#checkedTensors(): Map<string, StoredTensor> {
		const path = this.#file.path;
		const count = (key: string): number => {
			const value = this.header.metadata.get(key);
			return typeof value === "number" ? value : 0;
		};
		const architecture = String(this.header.metadata.get("general.architecture"));
		const heads = count(`${architecture}.attention.head_count`);
		const kvHeads = count(`${architecture}.attention.head_count_kv`) || heads;
		const family = familyOfGguf(architecture);
		const pairs: Record<string, number> =
			family && FAMILIES[family].pairedRows ? { attn_q: heads, attn_k: kvHeads } : {};
		const tensors = new Map<string, StoredTensor>();
		for (const { name, shape, type: typeNumber, offset } of this.header.tensors) {
			const type = (GGML_TYPES[typeNumber] ?? `number ${typeNumber}`) as WeightType;
			if (!READABLE_WEIGHT_TYPES.includes(type)) {
				throw new ModelFileError(
					path,
					`tensor ${name} has the type ${type}, which cannot be read; ` +
						`use a file with the types ${READABLE_WEIGHT_TYPES.join(", ")}`,
				);
			}
			const columns = shape.at(-1)!;
			const rows = shape.slice(0, -1).reduce((product, size) => product * size, 1);
			const block = blockLayout(type)?.weights ?? 1;
			if (columns % block !== 0) {
				throw new ModelFileError(path, `tensor ${name} has rows of ${columns}, not a multiple of ${block}`);
			}
			const end = offset + rows * rowBytes(type, columns);
			if (!Number.isSafeInteger(end) || end > this.#file.size) {
				throw new ModelFileError(
					path,
					`tensor ${name} reaches to byte ${end} but the file has ${this.#file.size}; it is cut short or corrupt`,
				);
			}
			const canonical = canonicalGgufName(name, architecture);
			if (tensors.has(canonical)) throw new ModelFileError(path, `tensor ${name} is there twice`);
			const paired = pairs[/^blk\.\d+\.(\w+)\.(weight|bias)$/.exec(name)?.[1] ?? ""] ?? 0;
			// A bias is a vector: its numbers are what a matrix's rows are.
			const height = shape.length === 1 ? columns : rows;
			if (paired && height % (paired * 2) !== 0) {
				throw new ModelFileError(path, `tensor ${name} has ${height} rows, which ${paired} heads do not divide`);
			}
			tensors.set(canonical, {
				name: canonical,
				type,
				shape,
				rows,
				columns,
				offset,
				pairedHeadRows: paired ? height / paired : 0,
			});
		}
		return tensors;
	}

	#tensor(name: string): StoredTensor {
		const tensor = this.tensors.get(name);
		if (!tensor) throw new ModelFileError(this.#file.path, `has no tensor ${name}`);
		return tensor;
	}

	readRaw(name: string, firstRow: number, rowCount: number): Uint8Array {
		const tensor = this.#tensor(name);
		const { shape, columns, type, pairedHeadRows: head } = tensor;
		const stride = rowBytes(type, columns);
		const read = (from: number, to: number) =>
			this.#file.read(tensor.offset + from * stride, (to - from) * stride, `tensor ${name}`);
		if (head === 0) return read(firstRow, firstRow + rowCount);
		if (shape.length === 1) return unpaired(read(0, 1), head, 0, columns, stride / columns);
		const from = Math.floor(firstRow / head) * head;
		const to = Math.ceil((firstRow + rowCount) / head) * head;
		return unpaired(read(from, to), head, firstRow - from, rowCount, stride);
	}

	readRows(name: string, firstRow: number, rowCount: number): Float32Array {
		const { type, columns } = this.#tensor(name);
		const out = new Float32Array(rowCount * columns);
		dequantize(type, this.readRaw(name, firstRow, rowCount), out);
		return out;
	}

	close(): void {
		this.#file.close();
	}
}
