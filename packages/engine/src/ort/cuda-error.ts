// SPDX-License-Identifier: Apache-2.0
// Failures of the CUDA runtime, and the lack of a usable one.

/** A call of the CUDA runtime that failed. */
export class CudaError extends Error {
	override readonly name = "CudaError";
	/** cudaError_t. */
	readonly code: number;
	/** The function that failed. */
	readonly call: string;

	constructor(code: number, call: string, message: string) {
		super(`CUDA ${call}: ${message} (error ${code})`);
		this.code = code;
		this.call = call;
	}
}

/** Why a model cannot run on CUDA here; `message` holds reason and cure. */
export class CudaUnavailableError extends Error {
	override readonly name = "CudaUnavailableError";
	/** What is missing or does not fit, with the loader's or the runtime's own words. */
	readonly reason: string;
	/** What to do. */
	readonly cure: string;

	constructor(reason: string, cure: string, options?: ErrorOptions) {
		super(`CUDA cannot be used: ${reason}; ${cure}`, options);
		this.reason = reason;
		this.cure = cure;
	}
}
