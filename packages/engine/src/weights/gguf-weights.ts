// SPDX-License-Identifier: Apache-2.0
// Tensors of a GGUF file of the Llama family under their canonical names.

import { dequantize } from "./dequantize.js";
import { FileReader } from "./file-reader.js";
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
};

const LAYER_NAMES: Record<string, string> = {
	"attn_norm.weight": "input_layernorm.weight",
	"attn_q.weight": "self_attn.q_proj.weight",
	"attn_k.weight": "self_attn.k_proj.weight",
	"attn_v.weight": "self_attn.v_proj.weight",
	"attn_output.weight": "self_attn.o_proj.weight",
	"ffn_norm.weight": "post_attention_layernorm.weight",
	"ffn_gate.weight": "mlp.gate_proj.weight",
	"ffn_up.weight": "mlp.up_proj.weight",
	"ffn_down.weight": "mlp.down_proj.weight",
};

/** Canonical name of a GGUF tensor; a name without a counterpart stays as it is. */
export function canonicalGgufName(name: string): string {
	const layer = /^blk\.(\d+)\.(.+)$/.exec(name);
	if (!layer) return TOP_NAMES[name] ?? name;
	const rest = LAYER_NAMES[layer[2]!];
	return rest ? `model.layers.${layer[1]}.${rest}` : name;
}

interface StoredTensor extends WeightTensor {
	readonly offset: number;
	/** Rows of one head, when rows are stored in the order of interleaved rotary pairs; else 0. */
	readonly pairedHeadRows: number;
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
		const heads = count("llama.attention.head_count");
		const kvHeads = count("llama.attention.head_count_kv") || heads;
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
			if (type.startsWith("Q") && columns % 32 !== 0) {
				throw new ModelFileError(path, `tensor ${name} has rows of ${columns}, not a multiple of 32`);
			}
			const end = offset + rows * rowBytes(type, columns);
			if (!Number.isSafeInteger(end) || end > this.#file.size) {
				throw new ModelFileError(
					path,
					`tensor ${name} reaches to byte ${end} but the file has ${this.#file.size}; it is cut short or corrupt`,
				);
			}
			const canonical = canonicalGgufName(name);
			if (tensors.has(canonical)) throw new ModelFileError(path, `tensor ${name} is there twice`);
			const paired = name.endsWith("attn_q.weight") ? heads : name.endsWith("attn_k.weight") ? kvHeads : 0;
			if (paired && rows % (paired * 2) !== 0) {
				throw new ModelFileError(path, `tensor ${name} has ${rows} rows, which ${paired} heads do not divide`);
			}
			tensors.set(canonical, {
				name: canonical,
				type,
				shape,
				rows,
				columns,
				offset,
				pairedHeadRows: paired ? rows / paired : 0,
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
		const stride = rowBytes(tensor.type, tensor.columns);
		const head = tensor.pairedHeadRows;
		if (head === 0) return this.#file.read(tensor.offset + firstRow * stride, rowCount * stride, `tensor ${name}`);
		// llama.cpp stores rotary pairs side by side: its row 2i+j of a head is row j * head/2 + i of Hugging Face.
		const from = Math.floor(firstRow / head) * head;
		const to = Math.ceil((firstRow + rowCount) / head) * head;
		const stored = this.#file.read(tensor.offset + from * stride, (to - from) * stride, `tensor ${name}`);
		const out = new Uint8Array(rowCount * stride);
		for (let i = 0; i < rowCount; i++) {
			const row = firstRow + i - from;
			const inHead = row % head;
			const pair = inHead % (head / 2);
			const source = row - inHead + 2 * pair + (inHead < head / 2 ? 0 : 1);
			out.set(stored.subarray(source * stride, (source + 1) * stride), i * stride);
		}
		return out;
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
