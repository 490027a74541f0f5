// SPDX-License-Identifier: Apache-2.0
// Failures that a dispatch finds by itself.
import { type Annotated, DynamoError, type LLMEngineOutput } from "@dynamo-ts/protocols/internal";

/** The error for a model whose workers are all gone or put aside. */
export function notReadyError(model: string): DynamoError {
	return new DynamoError("Unavailable", `no worker of model ${model} can be reached`, {
		reason: "backend.unavailable",
	});
}

/** The failure that a worker's item tells of as the end of the answer. */
export function finishError(item: Annotated<unknown>): DynamoError | undefined {
	const reason = (item.data as Partial<LLMEngineOutput> | null | undefined)?.finish_reason;
	if (reason === null || reason === undefined) return undefined;
	const why = typeof reason === "object" ? reason.error : reason === "error" ? "no reason given" : undefined;
	return why === undefined ? undefined : new DynamoError("Unknown", `the worker failed: ${why}`);
}
