// SPDX-License-Identifier: Apache-2.0
// Stored weights to fp32, bit for bit as ggml does it.

import { decodeBF16, decodeF16, decodeF32 } from "./float-formats.js";
import { blockLayout, dequantizeBlocks } from "./gguf-blocks.js";
import type { WeightType } from "./weight-source.js";

/** Decodes whole rows (or blocks) of a stored type into `out`, which must have room for them. */
export function dequantize(type: WeightType, bytes: Uint8Array, out: Float32Array): void {
	if (type === "F32") decodeF32(bytes, out);
	else if (type === "F16") decodeF16(bytes, out);
	else if (type === "BF16") decodeBF16(bytes, out);
	else dequantizeBlocks(blockLayout(type)!, bytes, out);
}
