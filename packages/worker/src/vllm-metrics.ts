// SPDX-License-Identifier: Apache-2.0
// What an engine does for its requests, under vLLM's names: dashboards and agents that know vLLM read them.
import type { Engine, EngineInfo, EngineOutput, EngineRequest, FinishReason, KvFetch } from "@dynamo-ts/engine";
import { lengthBuckets, METRICS, MORE_LABELS } from "@dynamo-ts/protocols/internal";
import type { Counter, Histogram, MetricsRegistry } from "@dynamo-ts/runtime";
import { openCounter, openCounterVec, openGauge, openHistogram } from "@dynamo-ts/runtime/internal";
import { followCounters } from "./engine-metrics.js";

const FAMILIES = METRICS.vllm;
/** vLLM's words for how a request ended. */
const REASONS = { stop: "stop", eos: "stop", length: "length", cancelled: "abort", error: "error" } as const;

/** The series of one model's engine. */
export class VllmMetrics {
	readonly timeToFirstToken: Histogram;
	readonly interTokenLatency: Histogram;
	readonly promptTokens: Counter;
	readonly generationTokens: Counter;
	readonly #e2e: Histogram;
	readonly #queueTime: Histogram;
	readonly #prefillTime: Histogram;
	readonly #decodeTime: Histogram;
	readonly #inferenceTime: Histogram;
	readonly #timePerOutputToken: Histogram;
	readonly #promptLength: Histogram;
	readonly #generationLength: Histogram;
	readonly #computedTokens: Histogram;
	readonly #maxTokens: Histogram;
	readonly #choices: Histogram;
	readonly #finished: Readonly<Record<FinishReason, Counter>>;

	/**
	 * @param metrics the registry of families without a prefix and without labels.
	 * @throws DynamoError `Conflict` when an engine for the same model is on that page already.
	 */
	constructor(metrics: MetricsRegistry, engine: Engine, info: EngineInfo, model: string) {
		const labels = { [MORE_LABELS.engine]: "0", [MORE_LABELS.modelName]: model };
		const lengths = lengthBuckets(info.maxModelLen);
		this.timeToFirstToken = openHistogram(metrics, FAMILIES.timeToFirstTokenSeconds, labels);
		this.interTokenLatency = openHistogram(metrics, FAMILIES.interTokenLatencySeconds, labels);
		this.promptTokens = openCounter(metrics, FAMILIES.promptTokensTotal, labels);
		this.generationTokens = openCounter(metrics, FAMILIES.generationTokensTotal, labels);
		this.#e2e = openHistogram(metrics, FAMILIES.e2eRequestLatencySeconds, labels);
		this.#queueTime = openHistogram(metrics, FAMILIES.requestQueueTimeSeconds, labels);
		this.#prefillTime = openHistogram(metrics, FAMILIES.requestPrefillTimeSeconds, labels);
		this.#decodeTime = openHistogram(metrics, FAMILIES.requestDecodeTimeSeconds, labels);
		this.#inferenceTime = openHistogram(metrics, FAMILIES.requestInferenceTimeSeconds, labels);
		this.#timePerOutputToken = openHistogram(metrics, FAMILIES.requestTimePerOutputTokenSeconds, labels);
		this.#promptLength = openHistogram(metrics, FAMILIES.requestPromptTokens, labels, lengths);
		this.#generationLength = openHistogram(metrics, FAMILIES.requestGenerationTokens, labels, lengths);
		this.#computedTokens = openHistogram(metrics, FAMILIES.requestPrefillKvComputedTokens, labels, lengths);
		openGauge(metrics, FAMILIES.requestPrefillKvComputedTokensCreated, labels).set(Date.now() / 1000);
		this.#maxTokens = openHistogram(metrics, FAMILIES.requestParamsMaxTokens, labels, lengths);
		this.#choices = openHistogram(metrics, FAMILIES.requestParamsN, labels);
		const finished = openCounterVec(metrics, FAMILIES.requestSuccessTotal, labels);
		this.#finished = {
			stop: finished.withLabelValues(REASONS.stop),
			eos: finished.withLabelValues(REASONS.eos),
			length: finished.withLabelValues(REASONS.length),
			cancelled: finished.withLabelValues(REASONS.cancelled),
			error: finished.withLabelValues(REASONS.error),
		};
		openGauge(metrics, FAMILIES.cacheConfigInfo, {
			[MORE_LABELS.blockSize]: String(info.blockSize),
			[MORE_LABELS.cacheDtype]: info.kvCacheDtype,
			...labels,
			[MORE_LABELS.numGpuBlocks]: String(info.totalBlocks),
		}).set(1);
		this.#readStats(metrics, engine, labels);
	}

	/** The same engine; what it does for requests from now on is counted. */
	watch(engine: Engine): Engine {
		return {
			start: () => engine.start(),
			submit: (request, onOutput) => {
				const meter = new RequestMeter(this, request);
				engine.submit(meter.watched(), (output) => {
					meter.onOutput(output);
					onOutput(output);
				});
			},
			abort: (requestId) => engine.abort(requestId),
			stats: () => engine.stats(),
			kv: engine.kv,
			onFailure: (callback) => engine.onFailure(callback),
			onKvEvents: (callback) => engine.onKvEvents(callback),
			close: () => engine.close(),
		};
	}

	/**
	 * A choice ended. Lengths and times are only told of those that came to their end.
	 * @param fetchedTokens of the prompt that another engine had computed.
	 */
	finished(choice: Choice, request: EngineRequest, fetchedTokens: number, reason: FinishReason, now: number): void {
		this.#finished[reason].inc();
		if (reason === "cancelled" || reason === "error") return;
		const prompt = request.tokenIds.length;
		this.#e2e.observe((now - choice.submittedAt) / 1000);
		this.#promptLength.observe(prompt);
		this.#generationLength.observe(choice.tokens);
		this.#choices.observe(request.sampling.n ?? 1);
		if (request.stop.maxTokens !== undefined) this.#maxTokens.observe(request.stop.maxTokens);
		if (choice.tokens === 0) return;
		const decode = (choice.lastAt - choice.firstAt) / 1000;
		this.#computedTokens.observe(prompt - Math.max(choice.cachedTokens, fetchedTokens));
		this.#queueTime.observe(Math.max(0, (choice.firstAt - choice.submittedAt) / 1000 - choice.prefillSeconds));
		this.#prefillTime.observe(choice.prefillSeconds);
		this.#decodeTime.observe(decode);
		this.#inferenceTime.observe(choice.prefillSeconds + decode);
		if (choice.tokens > 1) this.#timePerOutputToken.observe(decode / (choice.tokens - 1));
	}

	/** What the engine counts by itself is read when the page is. */
	#readStats(metrics: MetricsRegistry, engine: Engine, labels: Readonly<Record<string, string>>): void {
		const running = openGauge(metrics, FAMILIES.numRequestsRunning, labels);
		const waiting = openGauge(metrics, FAMILIES.numRequestsWaiting, labels);
		const usage = openGauge(metrics, FAMILIES.kvCacheUsagePerc, labels);
		const oldUsage = openGauge(metrics, FAMILIES.gpuCacheUsagePerc, labels);
		const follow = followCounters([
			["preemptions", openCounter(metrics, FAMILIES.numPreemptionsTotal, labels)],
			["cacheQueryTokens", openCounter(metrics, FAMILIES.prefixCacheQueriesTotal, labels)],
			["cacheHitTokens", openCounter(metrics, FAMILIES.prefixCacheHitsTotal, labels)],
		]);
		metrics.addUpdateCallback(() => {
			const stats = engine.stats();
			const share = stats.totalBlocks === 0 ? 0 : stats.usedBlocks / stats.totalBlocks;
			running.set(stats.running);
			waiting.set(stats.waiting);
			usage.set(share);
			oldUsage.set(share);
			follow(stats);
		});
		if (engine.onStep === undefined) return;
		const iterations = openHistogram(metrics, FAMILIES.iterationTokensTotal, labels);
		engine.onStep(({ prefill, decode }) => iterations.observe(prefill.tokens + decode.requests));
	}
}

/** One choice of a request; times are those of `performance.now()`. */
interface Choice {
	readonly submittedAt: number;
	tokens: number;
	firstAt: number;
	lastAt: number;
	prefillSeconds: number;
	cachedTokens: number;
}

/** Follows one request through the engine. */
class RequestMeter {
	readonly #metrics: VllmMetrics;
	readonly #request: EngineRequest;
	readonly #first: Choice;
	/** The choices behind the first one; most requests have none. */
	#others: Choice[] | undefined;
	#fetchedTokens = 0;

	constructor(metrics: VllmMetrics, request: EngineRequest) {
		this.#metrics = metrics;
		this.#request = request;
		this.#first = newChoice(performance.now());
	}

	/** The request as the engine gets it: whether the prompt came from elsewhere is noted. */
	watched(): EngineRequest {
		const { fetchKv } = this.#request;
		if (fetchKv === undefined) return this.#request;
		return { ...this.#request, fetchKv: (fetch) => fetchKv(this.#watchFetch(fetch)) };
	}

	#watchFetch(fetch: KvFetch): KvFetch {
		const { tokens, firstBlock, numBlocks, signal } = fetch;
		return {
			tokens,
			firstBlock,
			numBlocks,
			signal,
			memory: (index) => fetch.memory(index),
			written: (index) => fetch.written(index),
			finish: (complete) => {
				if (complete) this.#fetchedTokens = tokens;
				fetch.finish(complete);
			},
		};
	}

	onOutput(output: EngineOutput): void {
		const now = performance.now();
		const choice = this.#choice(output.index - (this.#request.index ?? 0));
		const count = output.tokenIds.length;
		if (count > 0) this.#onTokens(choice, output, count, now);
		if (output.finishReason !== undefined) {
			this.#metrics.finished(choice, this.#request, this.#fetchedTokens, output.finishReason, now);
		}
	}

	#onTokens(choice: Choice, output: EngineOutput, count: number, now: number): void {
		const metrics = this.#metrics;
		metrics.generationTokens.inc(count);
		let later = count;
		if (choice.tokens === 0) {
			choice.firstAt = now;
			choice.lastAt = now;
			choice.prefillSeconds = output.prefillSeconds ?? 0;
			choice.cachedTokens = output.cachedTokens ?? 0;
			metrics.timeToFirstToken.observe((now - choice.submittedAt) / 1000);
			metrics.promptTokens.inc(this.#request.tokenIds.length);
			later--;
		}
		const seconds = later === 0 ? 0 : (now - choice.lastAt) / 1000 / later;
		for (let i = 0; i < later; i++) metrics.interTokenLatency.observe(seconds);
		choice.lastAt = now;
		choice.tokens += count;
	}

	#choice(at: number): Choice {
		if (at === 0) return this.#first;
		this.#others ??= [];
		let choice = this.#others[at - 1];
		if (choice === undefined) {
			choice = newChoice(this.#first.submittedAt);
			this.#others[at - 1] = choice;
		}
		return choice;
	}
}

function newChoice(submittedAt: number): Choice {
	return { submittedAt, tokens: 0, firstAt: 0, lastAt: 0, prefillSeconds: 0, cachedTokens: 0 };
}
