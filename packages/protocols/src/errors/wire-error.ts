// SPDX-License-Identifier: Apache-2.0
import {
	BACKEND_ERRORS,
	type BackendError,
	DynamoError,
	type DynamoErrorOptions,
	ERROR_CLASSES,
	type ErrorClass,
	isDynamoError,
	type WireError,
	type WireErrorType,
} from "../dynamo-error.js";
import { isJsonObject } from "../json.js";
import {
	BACKEND_ERROR_FACTS,
	CLASS_OF_REASON,
	type ErrorReason,
	errorReason,
	failureClass,
	isErrorReason,
	REASON_OF_ERROR_CLASS,
} from "./error-catalogue.js";

const BACKEND_ERROR_OF_REASON = new Map<ErrorReason, BackendError>(
	BACKEND_ERRORS.map((name) => [BACKEND_ERROR_FACTS[name].reason, name]),
);

function wireErrorType(error: DynamoError, reason: ErrorReason): WireErrorType {
	if (REASON_OF_ERROR_CLASS[error.errorClass] === reason) return error.errorClass;
	const backend = BACKEND_ERROR_OF_REASON.get(reason);
	return backend === undefined ? error.errorClass : { Backend: backend };
}

/** The error as an error item or a prologue carries it; anything that is not a DynamoError becomes Internal. */
export function toWireError(thrown: unknown): WireError {
	if (!isDynamoError(thrown)) {
		return toWireError(new DynamoError("Internal", thrown instanceof Error ? thrown.message : String(thrown)));
	}
	const reason = errorReason(thrown);
	const wire: WireError = {
		error_type: wireErrorType(thrown, reason),
		class: failureClass(thrown),
		reason,
		message: thrown.message,
		diagnostic: thrown.message,
	};
	if (thrown.publicMessage !== undefined) wire.public = { type: "message", message: thrown.publicMessage };
	if (thrown.code !== undefined) wire.code = thrown.code;
	if (thrown.param !== undefined) wire.param = thrown.param;
	return wire;
}

function factsOf(type: unknown): { errorClass: ErrorClass; reason: ErrorReason } {
	if (isJsonObject(type)) {
		const backend = BACKEND_ERRORS.find((name) => name === type.Backend) ?? "Unknown";
		return BACKEND_ERROR_FACTS[backend];
	}
	const errorClass = ERROR_CLASSES.find((name) => name === type) ?? "Unknown";
	return { errorClass, reason: REASON_OF_ERROR_CLASS[errorClass] };
}

/**
 * The error that a peer sent. error_type decides the class; class and reason are taken over when they are a registered
 * pair, and make the error Internal when they are given but are not. Anything that is not an error object is Internal.
 */
export function fromWireError(value: unknown): DynamoError {
	if (!isJsonObject(value)) return new DynamoError("Internal", "the peer sent an error that is no object");
	const wire = value as Partial<WireError>;
	const message = typeof wire.message === "string" ? wire.message : "the peer sent an error without a message";
	const options: DynamoErrorOptions = {};
	const facts = factsOf(wire.error_type);
	let { errorClass } = facts;
	let reason: ErrorReason = facts.reason;
	if (wire.reason !== undefined || wire.class !== undefined) {
		if (isErrorReason(wire.reason) && CLASS_OF_REASON[wire.reason] === wire.class) {
			reason = wire.reason;
			if (errorClass === "Unknown" && reason !== facts.reason) errorClass = CLASS_OF_REASON[reason];
		} else if (wire.class !== "Conflict") {
			errorClass = "Internal";
			reason = "runtime.invalid_error";
		}
	}
	if (reason !== REASON_OF_ERROR_CLASS[errorClass]) options.reason = reason;
	if (isJsonObject(wire.public) && typeof wire.public.message === "string") options.publicMessage = wire.public.message;
	if (typeof wire.code === "string") options.code = wire.code;
	if (typeof wire.param === "string") options.param = wire.param;
	return new DynamoError(errorClass, message, options);
}
