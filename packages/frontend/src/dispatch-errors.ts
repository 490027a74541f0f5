// SPDX-License-Identifier: Apache-2.0
// Failures that a dispatch finds by itself.
import { DynamoError } from "@dynamo-ts/protocols/internal";

/** The error for a model whose workers are all gone or put aside. */
export function notReadyError(model: string): DynamoError {
	return new DynamoError("Unavailable", `no worker of model ${model} can be reached`, {
		reason: "backend.unavailable",
	});
}
