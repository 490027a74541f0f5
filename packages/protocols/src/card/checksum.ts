// SPDX-License-Identifier: Apache-2.0
import { blake3 } from "@napi-rs/blake-hash";
import { DynamoError } from "../dynamo-error.js";
import type { CheckedFile } from "../model-card.js";

const PREFIX = "blake3:";

/** BLAKE3-256 of the bytes, 64 lowercase hex digits. */
export function blake3Hex(bytes: Uint8Array): string {
	return blake3(bytes).toString("hex");
}

/** BLAKE3-256 of the bytes, 32 bytes. */
export function blake3Bytes(bytes: Uint8Array): Buffer {
	return blake3(bytes);
}

/** True for `blake3:` and 64 lowercase hex digits. */
export function isChecksum(text: string): boolean {
	return /^blake3:[0-9a-f]{64}$/.test(text);
}

/** A file reference for a card, from the file's bytes. */
export function checkedFile(path: string, bytes: Uint8Array): CheckedFile {
	return { path, checksum: PREFIX + blake3Hex(bytes), size: bytes.length };
}

/**
 * Compares a file's bytes with the checksum that a card gives.
 *
 * @throws DynamoError InvalidArgument when the algorithm is unknown or the bytes differ.
 */
export function verifyChecksum(bytes: Uint8Array, checksum: string): void {
	if (!isChecksum(checksum)) {
		throw new DynamoError(
			"InvalidArgument",
			`checksum ${JSON.stringify(checksum)} is not blake3 with 64 lowercase hex digits`,
		);
	}
	const actual = PREFIX + blake3Hex(bytes);
	if (actual !== checksum) {
		throw new DynamoError(
			"InvalidArgument",
			`checksum mismatch: expected ${checksum}, the ${bytes.length} bytes have ${actual}`,
		);
	}
}
