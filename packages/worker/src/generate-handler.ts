// SPDX-License-Identifier: Apache-2.0
// The `generate` endpoint: engine outputs become response items in the engine's own callback, one item per step
// and choice. Nothing is awaited per token; the response writer puts what one turn produced into one write.
import type { Engine, EngineError, EngineOutput, EngineRequest } from "@dynamo-ts/engine";
import {
	type Annotated,
	DynamoError,
	type LLMEngineOutput,
	type TopLogprob,
	type WireFinishReason,
	type WirePromptLogprobs,
} from "@dynamo-ts/protocols/internal";
import type { CancelKind, EndpointHandler, IngressRequest, ResponseWriter } from "@dynamo-ts/runtime";
import { BestOf, type BestOfOptions, candidateRequest, type StopScanner } from "./best-of.js";
import { type Disaggregation, prefillAnswer, prefillLeg } from "./disaggregation.js";
import { engineShutdownError } from "./engine-errors.js";
import { EngineSpans } from "./engine-spans.js";
import { type RequestContext, readBestOf, toEngineRequest } from "./generate-request.js";
import type { PromptSource } from "./kv-transfer/kv-transfer.js";
import { wirePromptLogprobs } from "./prompt-logprobs.js";

/** What only a tokenizer knows: text and bytes of tokens for log-probabilities, stop strings for best_of. */
export interface TokenTexts {
	/** The token's text; an incomplete UTF-8 sequence shows as U+FFFD. */
	text(tokenId: number): string;
	/** The token's own bytes, where the vocabulary tells. */
	bytes(tokenId: number): number[] | undefined;
	/** Looks for stop strings in the text of one choice. */
	stopScanner(stops: readonly string[]): StopScanner;
}

export interface GenerateHandlerOptions {
	readonly engine: Engine;
	readonly context: RequestContext;
	/** Default: all of a request is computed here. */
	readonly disaggregation?: Disaggregation | undefined;
	/** Loads what log-probabilities and best_of need; called when the first request asks for them. */
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
		plainRequest: EngineRequest,
		bestOf: BestOfOptions | undefined,
	) => {
		let engineRequest = plainRequest;
		const { keep, source } = options.disaggregation ?? {};
		let leg: Pick<StreamOptions, "keep" | "prompt"> = {};
		const prefill = keep === undefined ? undefined : prefillLeg(plainRequest, request.payload);
		const answer = source === undefined ? undefined : prefillAnswer(request.payload);
		if (prefill !== undefined) {
			engineRequest = prefill;
			leg = { keep: (output) => keep!(output, prefill) };
		} else if (answer !== undefined && plainRequest.promptLogprobs === undefined) {
			const prompt = source!(answer.params, plainRequest);
			if (prompt !== undefined) {
				engineRequest = { ...plainRequest, fetchKv: prompt.fetchKv };
				leg = { prompt: { source: prompt, cachedTokens: answer.cachedTokens } };
			}
		}
		const stream = new GenerateStream(engine, engineRequest.requestId, response, {
			choices: bestOf?.n ?? engineRequest.sampling.n ?? 1,
			...leg,
			tokenTexts,
			spans: EngineSpans.of(request.span),
		});
		try {
			if (bestOf === undefined) engine.submit(engineRequest, (output) => stream.onOutput(output));
			else {
				const stops = bestOf.stops.length === 0 ? undefined : () => tokenTexts!.stopScanner(bestOf.stops);
				const best = new BestOf(engineRequest.sampling.n ?? 1, bestOf, stops);
				engine.submit(candidateRequest(engineRequest), (output) => stream.onCandidate(output, best));
			}
		} catch (error) {
			leg.prompt?.source.settle();
			response.fail(engineShutdownError(`the engine takes no requests: ${messageOf(error)}`));
			return;
		}
		request.onCancel((kind) => stream.onCancel(kind));
	};

	return (request, response) => {
		const engineRequest = toEngineRequest(`${request.id}#${++sequence}`, request.payload, context);
		const bestOf = readBestOf(request.payload);
		const { logprobs, promptLogprobs } = engineRequest;
		const plain = logprobs === undefined && promptLogprobs === undefined && bestOf === undefined;
		if (plain || tokenTexts !== undefined) {
			submit(request, response, engineRequest, bestOf);
			return;
		}
		return options.loadTokenTexts().then((loaded) => {
			tokenTexts = loaded;
			if (!response.closed) submit(request, response, engineRequest, bestOf);
		});
	};
}

interface StreamOptions {
	/** Choices that will be sent. */
	readonly choices: number;
	/** Loaded for the requests that need it. */
	readonly tokenTexts: TokenTexts | undefined;
	/** Of a prompt that a decode worker goes on from. */
	readonly keep?: ((output: EngineOutput) => unknown) | undefined;
	/** Of a prompt that a prefill worker computed. */
	readonly prompt?: { readonly source: PromptSource; readonly cachedTokens: number | undefined } | undefined;
	/** Of a request that is recorded. */
	readonly spans: EngineSpans | undefined;
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
	/** Sent with the first item, from which an echoed prompt is made, and with the last, where Dynamo looks for them. */
	#promptLogprobs: WirePromptLogprobs | undefined;

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
		this.#options.prompt?.source.settle();
		if (kind === "stop") this.#stopped = true;
		else {
			this.#ended = true;
			this.#options.spans?.end();
		}
		this.#engine.abort(this.#requestId);
	}

	/** Tokens of the prompt that were found in a cache, here or where it was computed. */
	#cachedTokens(own: number | undefined): number {
		const { prompt } = this.#options;
		return (prompt?.source.fetched === true ? prompt.cachedTokens : undefined) ?? own ?? 0;
	}

	/** Takes an output of a request of which only the best choices are sent. */
	onCandidate(output: EngineOutput, best: BestOf): void {
		if (this.#ended) return;
		if (output.prefillSeconds !== undefined) this.#options.spans?.onFirst(output);
		const finish = output.finishReason;
		if (finish === "error" || (finish === "cancelled" && !this.#stopped)) {
			this.onOutput(output);
			this.#engine.abort(this.#requestId);
			return;
		}
		const chosen = best.add(output);
		if (chosen === undefined) return;
		for (const one of chosen) this.onOutput(one);
		// Choices that came to a stop string are still at it.
		this.#engine.abort(this.#requestId);
	}

	onOutput(output: EngineOutput): void {
		if (this.#ended) return;
		if (output.prefillSeconds !== undefined) this.#options.spans?.onFirst(output);
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
		const { keep, prompt } = this.#options;
		if (keep !== undefined && output.tokenIds.length > 0 && output.index === 0)
			data.disaggregated_params = keep(output);
		prompt?.source.settle();
		if (output.logProbs !== undefined) this.#addLogprobs(data, output);
		if (output.promptLogprobs !== undefined) {
			this.#promptLogprobs = wirePromptLogprobs(output.promptLogprobs, this.#options.tokenTexts);
			data.engine_data = { prompt_logprobs: this.#promptLogprobs };
		}
		if (output.promptTokens !== undefined) {
			const completion = output.completionTokens ?? 0;
			data.completion_usage = {
				prompt_tokens: output.promptTokens,
				completion_tokens: completion,
				total_tokens: output.promptTokens + completion,
				prompt_tokens_details: { audio_tokens: null, cached_tokens: this.#cachedTokens(output.cachedTokens) },
			};
		}
		if (finish === undefined) {
			this.#response.send({ data } satisfies Annotated<LLMEngineOutput>);
			return;
		}
		data.finish_reason = finish satisfies WireFinishReason;
		if (output.stopReason !== undefined) data.stop_reason = output.stopReason;
		if (this.#promptLogprobs !== undefined && this.#unfinished === 1)
			data.engine_data = { prompt_logprobs: this.#promptLogprobs };
		this.#response.send({ data } satisfies Annotated<LLMEngineOutput>);
		this.#unfinished--;
		if (this.#unfinished === 0) {
			this.#ended = true;
			this.#options.spans?.end(output.completionTokens);
			this.#response.end();
		}
	}

	#fail(error: DynamoError): void {
		this.#ended = true;
		this.#options.prompt?.source.settle();
		this.#options.spans?.end();
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
