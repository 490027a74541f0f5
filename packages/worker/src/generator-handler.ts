// SPDX-License-Identifier: Apache-2.0
// Runs a generator for each request of an endpoint: its items go out, and the end of the request ends it.
import { DynamoError, isDynamoError, type LLMEngineOutput } from "@dynamo-ts/protocols/internal";
import type { EndpointHandler, IngressRequest, Logger, ResponseWriter } from "@dynamo-ts/runtime";

/** What a generator knows beside the request's body. */
export interface GenerateContext {
	/** The request's id, the same on every worker that a stream is moved to. */
	readonly requestId: string;
	/** Text headers that came with the request: `x-request-id`, `traceparent`, ... */
	readonly headers: Readonly<Record<string, string>>;
	/** Aborted when nobody waits for the answer any more: hand it to whatever the generator waits for. */
	readonly signal: AbortSignal;
}

/** Items as they go to the frontend. */
export type WireItems = AsyncIterable<LLMEngineOutput | Record<string, unknown>>;

/** While more than that waits for the frontend, the generator is not asked for more. */
const HIGH_WATER_BYTES = 1024 * 1024;
const LOW_WATER_CHECK_MS = 10;

/**
 * Makes an endpoint handler of a function from a request to items.
 * @param log told about exceptions that are no DynamoError.
 */
export function generatorHandler(
	generate: (request: unknown, context: GenerateContext) => WireItems,
	log: Logger,
): EndpointHandler {
	return (request, response) => void run(generate, request, response, log);
}

async function run(
	generate: (request: unknown, context: GenerateContext) => WireItems,
	request: IngressRequest,
	response: ResponseWriter,
	log: Logger,
): Promise<void> {
	const abort = new AbortController();
	let stopped = false;
	request.onCancel((kind) => {
		if (kind === "stop") stopped = true;
		abort.abort();
	});
	const context = { requestId: request.id, headers: request.headers, signal: abort.signal };
	try {
		// Leaving the loop runs the generator's finally blocks.
		for await (const data of generate(request.payload, context)) {
			if (response.closed) return;
			response.send({ data });
			if (stopped) break;
			while (response.bufferedBytes > HIGH_WATER_BYTES && !response.closed) {
				await new Promise((resolve) => setTimeout(resolve, LOW_WATER_CHECK_MS));
			}
		}
		response.end();
	} catch (error) {
		if (abort.signal.aborted) {
			// What was asked for: the generator gave up waiting.
			response.end();
			return;
		}
		if (!isDynamoError(error)) log.error("a generator failed", { request_id: request.id, error }, request.span);
		response.fail(isDynamoError(error) ? error : new DynamoError("Internal", messageOf(error), { cause: error }));
	}
}

function messageOf(error: unknown): string {
	return `the generator failed: ${error instanceof Error ? error.message : String(error)}`;
}
