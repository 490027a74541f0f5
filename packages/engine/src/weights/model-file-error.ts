// SPDX-License-Identifier: Apache-2.0

/** A model file that cannot be used: which file, what is wrong, and what would work. */
export class ModelFileError extends Error {
	override readonly name = "ModelFileError";
	readonly path: string;

	constructor(path: string, message: string, options?: ErrorOptions) {
		super(`${path}: ${message}`, options);
		this.path = path;
	}
}
