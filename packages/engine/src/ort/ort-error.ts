// SPDX-License-Identifier: Apache-2.0
// Failures of ONNX Runtime and of reaching it.

/** Names of OrtErrorCode, by number. */
const CODES = [
	"OK",
	"FAIL",
	"INVALID_ARGUMENT",
	"NO_SUCHFILE",
	"NO_MODEL",
	"ENGINE_ERROR",
	"RUNTIME_EXCEPTION",
	"INVALID_PROTOBUF",
	"MODEL_LOADED",
	"NOT_IMPLEMENTED",
	"INVALID_GRAPH",
	"EP_FAIL",
] as const;

/** Name of an OrtErrorCode, or "LIBRARY" where the library itself could not be used. */
export type OrtErrorCode = (typeof CODES)[number] | "LIBRARY";

/** A call of ONNX Runtime that failed; `message` holds the call and ONNX Runtime's own words. */
export class OrtError extends Error {
	override readonly name = "OrtError";
	readonly code: OrtErrorCode;
	/** The C function that failed, or what was tried. */
	readonly call: string;

	constructor(code: OrtErrorCode, call: string, message: string, options?: ErrorOptions) {
		super(`ONNX Runtime ${call}: ${message}`, options);
		this.code = code;
		this.call = call;
	}
}

/** Name of an OrtErrorCode number; an unknown one reads as FAIL. */
export function ortErrorCode(code: number): OrtErrorCode {
	return CODES[code] ?? "FAIL";
}
