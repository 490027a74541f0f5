// SPDX-License-Identifier: Apache-2.0
// The `generate` endpoint: engine outputs become response items in the engine's own callback, one item per step
// and choice. Nothing is awaited per token; the response writer puts what one turn produced into one write.
import type { Engine, EngineError, EngineOutput } from "@dynamo-ts/engine";
import {
	type Annotated,
	DynamoError,
	type LLMEngineOutput,
	type TopLogprob,
	type WireFinishReason,
} from "@dynamo-ts/protocols/internal";
import type { CancelKind, EndpointHandler, IngressRequest, ResponseWriter } from "@dynamo-ts/runtime";
import { engineShutdownError } from "./engine-errors.js";
import { type RequestContext, toEngineRequest } from "./generate-request.js";

/** Text and bytes of single tokens, for log-probabilities. */
export interface TokenTexts {
	/** The token's text; an incomplete UTF-8 sequence shows as U+FFFD. */
	text(tokenId: number): string;
	/** The token's own bytes, where the vocabulary tells. */
	bytes(tokenId: number): number[] | undefined;
}

export interface GenerateHandlerOptions {
	readonly engine: Engine;
	readonly context: RequestContext;
	/** Loads what log-probabilities need; called when the first request asks for them. */
	loadTokenTexts(): Promise<TokenTexts>;
}

/** Makes the handler of a worker's `generate` endpoint. */
export function createGenerateHandler(options: GenerateHandlerOptions): EndpointHandler {
	const { engine, context } = options;
	// A context id can come twice at once (both legs of one user request, a retry): the engine needs unique ids.
	let sequence = 0;
	let tokenTexts: TokenTexts | undefined;

	const submit = (
		request: IngressRequest,
		response: ResponseWriter,
		engineRequest: ReturnType<typeof toEngineRequest>,
	) => {
		const stream = new GenerateStream(engine, engineRequest.requestId, response, {
			choices: engineRequest.sampling.n ?? 1,
			promptTokens: engineRequest.tokenIds.length,
			tokenTexts: engineRequest.logprobs === undefined ? undefined : tokenTexts,
		});
		try {
			engine.submit(engineRequest, (output) => stream.onOutput(output));
		} catch (error) {
			response.fail(engineShutdownError(`the engine takes no requests: ${messageOf(error)}`));
			return;
		}
		request.onCancel((kind) => stream.onCancel(kind));
	};

	return (request, response) => {
		const engineRequest = toEngineRequest(`${request.id}#${++sequence}`, request.payload, context);
		if (engineRequest.logprobs === undefined || tokenTexts !== undefined) {
			submit(request, response, engineRequest);
			return;
		}
		return options.loadTokenTexts().then((loaded) => {
			tokenTexts = loaded;
			if (!response.closed) submit(request, response, engineRequest);
		});
	};
}

interface StreamOptions {
	/** Choices that the engine will finish. */
	readonly choices: number;
	readonly promptTokens: number;
	readonly tokenTexts: TokenTexts | undefined;
}

/** One request between engine and client. */
class GenerateStream {
	readonly #engine: Engine;
	readonly #requestId: string;
	readonly #response: ResponseWriter;
	readonly #options: StreamOptions;
	readonly #severalChoices: boolean;
	#unfinished: number;
	#stopped = false;
	#ended = false;

	constructor(engine: Engine, requestId: string, response: ResponseWriter, options: StreamOptions) {
		this.#engine = engine;
		this.#requestId = requestId;
		this.#response = response;
		this.#options = options;
		this.#severalChoices = options.choices > 1;
		this.#unfinished = options.choices;
	}

	onCancel(kind: CancelKind): void {
		if (this.#ended) return;
		if (kind === "stop") this.#stopped = true;
		else this.#ended = true;
		this.#engine.abort(this.#requestId);
	}

	onOutput(output: EngineOutput): void {
		if (this.#ended) return;
		const finish = output.finishReason;
		if (finish === "error") {
			this.#fail(toDynamoError(output.error));
			return;
		}
		if (finish === "cancelled" && !this.#stopped) {
			// Nobody on this stream asked for it: the engine closed, and another worker can go on.
			this.#fail(engineShutdownError("the engine closed while the request ran"));
			return;
		}
		const data: LLMEngineOutput = { token_ids: output.tokenIds };
		if (this.#severalChoices) data.index = output.index;
		if (output.logProbs !== undefined) this.#addLogprobs(data, output);
		if (output.promptTokens !== undefined) {
			const completion = output.completionTokens ?? 0;
			data.completion_usage = {
				prompt_tokens: output.promptTokens,
				completion_tokens: completion,
				total_tokens: output.promptTokens + completion,
				prompt_tokens_details: { audio_tokens: null, cached_tokens: output.cachedTokens ?? 0 },
			};
		}
		if (finish === undefined) {
			this.#response.send({ data } satisfies Annotated<LLMEngineOutput>);
			return;
		}
		data.finish_reason = finish satisfies WireFinishReason;
		if (output.stopReason !== undefined) data.stop_reason = output.stopReason;
		this.#response.send({ data } satisfies Annotated<LLMEngineOutput>);
		this.#unfinished--;
		if (this.#unfinished === 0) {
			this.#ended = true;
			this.#response.end();
		}
	}

	#fail(error: DynamoError): void {
		this.#ended = true;
		// The other choices of this request have nobody left to read them.
		if (this.#unfinished > 1) this.#engine.abort(this.#requestId);
		this.#response.fail(error);
	}

	#addLogprobs(data: LLMEngineOutput, output: EngineOutput): void {
		const texts = this.#options.tokenTexts;
		data.log_probs = output.logProbs ?? null;
		if (texts !== undefined) data.tokens = output.tokenIds.map((id) => texts.text(id));
		if (output.topLogprobs === undefined) return;
		data.top_logprobs = output.topLogprobs.map((list) =>
			list.map((top): TopLogprob => {
				const entry: TopLogprob = {
					rank: top.rank,
					token_id: top.tokenId,
					token: texts?.text(top.tokenId) ?? null,
					logprob: top.logprob,
				};
				const bytes = texts?.bytes(top.tokenId);
				if (bytes !== undefined) entry.bytes = bytes;
				return entry;
			}),
		);
	}
}

function toDynamoError(error: EngineError | undefined): DynamoError {
	const message = error?.message ?? "the engine gave no reason";
	switch (error?.code) {
		case "invalid_argument":
			return new DynamoError("InvalidArgument", message, { publicMessage: message });
		case "context_length_exceeded":
			return new DynamoError("InvalidArgument", message, {
				publicMessage: message,
				param: "messages",
				code: "context_length_exceeded",
			});
		case "overloaded":
			return new DynamoError("WorkerOverloaded", message, { publicMessage: message });
		case "engine_failed":
			return engineShutdownError(message);
		default:
			return new DynamoError("Internal", `the engine failed at this request: ${message}`);
	}
}

function messageOf(error: unknown): string {
	return error instanceof Error ? error.message : String(error);
}
