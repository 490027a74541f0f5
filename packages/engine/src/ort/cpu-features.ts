// SPDX-License-Identifier: Apache-2.0
// What this machine's processor can do, as far as it decides which weight format is the fastest.

import { readFileSync } from "node:fs";

/** Flags of /proc/cpuinfo that stand for an instruction which multiplies and sums bytes: x86-64, then arm64. */
const BYTE_DOT_PRODUCT = ["avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"];

/** The processor's features by the kernel's names; empty where the system does not tell. */
function readCpuFlags(): readonly string[] {
	try {
		const line = /^(?:flags|Features)\s*:\s*(.*)$/m.exec(readFileSync("/proc/cpuinfo", "utf8"));
		return line ? line[1]!.split(/\s+/) : [];
	} catch {
		return [];
	}
}

/**
 * Whether products of bytes are faster than products of fp32. Without such an instruction ONNX Runtime's 8-bit blocks
 * take twice as long as fp32 for everything but one or two rows. Where the system does not tell, it is assumed.
 */
export function hasByteDotProduct(flags: readonly string[] = readCpuFlags()): boolean {
	return flags.length === 0 || BYTE_DOT_PRODUCT.some((flag) => flags.includes(flag));
}
