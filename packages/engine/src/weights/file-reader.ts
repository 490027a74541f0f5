// SPDX-License-Identifier: Apache-2.0
// Reads byte ranges of a file by descriptor: model files are larger than one buffer may be.

import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { ModelFileError } from "./model-file-error.js";

/** One open file. */
export class FileReader {
	readonly path: string;
	/** Bytes. */
	readonly size: number;
	#fd: number;

	/** @throws ModelFileError when the file cannot be opened. */
	constructor(path: string) {
		this.path = path;
		try {
			this.#fd = openSync(path, "r");
		} catch (cause) {
			throw new ModelFileError(path, `cannot be opened (${(cause as NodeJS.ErrnoException).code})`, { cause });
		}
		this.size = fstatSync(this.#fd).size;
	}

	/**
	 * The bytes `offset`..`offset + length`.
	 * @throws ModelFileError when the file ends before that.
	 */
	read(offset: number, length: number, what: string): Buffer {
		const buffer = Buffer.allocUnsafeSlow(length);
		let done = 0;
		while (done < length) {
			const count = readSync(this.#fd, buffer, done, length - done, offset + done);
			if (count === 0) {
				throw new ModelFileError(this.path, `ends at byte ${offset + done}, inside ${what}; the file is cut short`);
			}
			done += count;
		}
		return buffer;
	}

	close(): void {
		if (this.#fd < 0) return;
		closeSync(this.#fd);
		this.#fd = -1;
	}
}
