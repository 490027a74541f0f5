// SPDX-License-Identifier: Apache-2.0
import { DynamoError } from "@dynamo-ts/protocols/internal";

/** The engine is gone while the worker is not: another worker can serve the request. */
export function engineShutdownError(message: string, cause?: unknown): DynamoError {
	return new DynamoError("Unavailable", message, {
		reason: "backend.engine_shutdown",
		...(cause === undefined ? {} : { cause }),
	});
}
