// SPDX-License-Identifier: Apache-2.0
import { DynamoError, ERROR_CLASSES, type ErrorClass, type WireError } from "@dynamo-ts/protocols/internal";

export function toWireError(error: DynamoError): WireError {
	return { error_type: error.errorClass, class: error.errorClass, message: error.message };
}

export function fromWireError(wire: WireError): DynamoError {
	const name = typeof wire.error_type === "string" ? wire.error_type : "Internal";
	const known = (ERROR_CLASSES as readonly string[]).includes(name) ? (name as ErrorClass) : "Internal";
	return new DynamoError(known, wire.message);
}
