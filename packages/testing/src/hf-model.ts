// SPDX-License-Identifier: Apache-2.0
import { createHash } from "node:crypto";
import {
	closeSync,
	existsSync,
	mkdirSync,
	openSync,
	renameSync,
	rmSync,
	statSync,
	writeFileSync,
	writeSync,
} from "node:fs";
import { basename, join } from "node:path";
import { GgufWeights } from "@dynamo-ts/engine/internal";
import { convertGgufTokenizer } from "@dynamo-ts/tokenizers/internal";

/** Rounds to the nearest IEEE half, ties to even. */
function halfBits(value: number, scratch: { f: Float32Array; u: Uint32Array }): number {
	scratch.f[0] = value;
	const bits = scratch.u[0]!;
	const sign = (bits >>> 16) & 0x8000;
	const exponent = (bits >>> 23) & 0xff;
	const mantissa = bits & 0x7fffff;
	if (exponent === 0xff) return sign | 0x7c00 | (mantissa ? 0x200 : 0);
	const e = exponent - 112;
	if (e >= 31) return sign | 0x7c00;
	const shift = e > 0 ? 13 : 14 - e;
	if (shift > 24) return sign;
	const full = e > 0 ? mantissa : mantissa | 0x800000;
	let half = (e > 0 ? e << 10 : 0) + (full >>> shift);
	const rest = full & ((1 << shift) - 1);
	const middle = 1 << (shift - 1);
	if (rest > middle || (rest === middle && half & 1)) half++;
	return sign | half;
}

/**
 * Writes a GGUF model as a Hugging Face folder with fp16 safetensors, for peers that read only those, and for tests of
 * the safetensors path. Done once per GGUF content (by name and size).
 * @returns the folder's path.
 */
export async function ensureHfModel(gguf: string, parent: string): Promise<string> {
	const key = createHash("sha256")
		.update(`${basename(gguf)} ${statSync(gguf).size} 3`)
		.digest("hex")
		.slice(0, 12);
	const folder = join(parent, `${basename(gguf, ".gguf").replace(/[^A-Za-z0-9-]/g, "-")}-${key}`);
	if (existsSync(join(folder, "model.safetensors"))) return folder;
	const draft = `${folder}.${process.pid}.tmp`;
	mkdirSync(draft, { recursive: true });
	const weights = new GgufWeights(gguf);
	try {
		writeSafetensors(weights, join(draft, "model.safetensors"));
		const { metadata } = weights.header;
		const tieWordEmbeddings = !weights.tensors.has("lm_head.weight");
		const files = convertGgufTokenizer(metadata, { tieWordEmbeddings });
		// The one end token that the file names: the conversion knows more of them, other people's folders often do not.
		const eos = { eos_token_id: Number(metadata.get("tokenizer.ggml.eos_token_id")) };
		const withEos = (json: string | undefined) => JSON.stringify({ ...JSON.parse(json ?? "{}"), ...eos });
		writeFileSync(join(draft, "tokenizer.json"), files.tokenizerJson);
		writeFileSync(join(draft, "tokenizer_config.json"), files.tokenizerConfig);
		writeFileSync(join(draft, "generation_config.json"), withEos(files.generationConfig));
		writeFileSync(join(draft, "config.json"), withEos(files.config));
	} finally {
		weights.close();
	}
	rmSync(folder, { recursive: true, force: true });
	renameSync(draft, folder);
	return folder;
}

function writeSafetensors(weights: GgufWeights, path: string): void {
	const header: Record<string, unknown> = { __metadata__: { format: "pt" } };
	let offset = 0;
	for (const tensor of weights.tensors.values()) {
		const bytes = tensor.rows * tensor.columns * 2;
		header[tensor.name] = { dtype: "F16", shape: tensor.shape, data_offsets: [offset, offset + bytes] };
		offset += bytes;
	}
	const json = Buffer.from(JSON.stringify(header));
	const length = Buffer.alloc(8);
	length.writeBigUInt64LE(BigInt(json.length));
	const file = openSync(path, "w");
	const f = new Float32Array(1);
	const scratch = { f, u: new Uint32Array(f.buffer) };
	try {
		writeSync(file, length);
		writeSync(file, json);
		for (const tensor of weights.tensors.values()) {
			const values = weights.readRows(tensor.name, 0, tensor.rows);
			const halves = new Uint16Array(values.length);
			for (let i = 0; i < values.length; i++) halves[i] = halfBits(values[i]!, scratch);
			writeSync(file, halves);
		}
	} finally {
		closeSync(file);
	}
}
