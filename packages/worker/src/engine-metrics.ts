// SPDX-License-Identifier: Apache-2.0
import type { Engine, EngineInfo, EngineStats } from "@dynamo-ts/engine";
import { ENGINE_METRICS, LABELS } from "@dynamo-ts/protocols/internal";
import type { MetricsRegistry } from "@dynamo-ts/runtime";

/** Puts an engine's numbers on a metrics page; they are read when the page is. */
export function registerEngineMetrics(metrics: MetricsRegistry, engine: Engine, info: EngineInfo, model: string): void {
	const labels = { [LABELS.model]: model };
	const gauge = (name: string, help: string) => metrics.createGauge(name, help, labels);
	const totalBlocks = gauge(ENGINE_METRICS.totalBlocks, "Blocks of the KV cache");
	const cachedBlocks = gauge(ENGINE_METRICS.cachedBlocks, "Blocks that a prompt with the same beginning would find");
	const usage = gauge(ENGINE_METRICS.gpuCacheUsagePercent, "Share of the KV cache in use, 0 to 1");
	const hitRate = gauge(ENGINE_METRICS.kvCacheHitRate, "Share of prompt tokens found in the KV cache, 0 to 1");
	const oldActive = gauge(ENGINE_METRICS.kvstatsActiveBlocks, "Blocks of the KV cache in use");
	const oldTotal = gauge(ENGINE_METRICS.kvstatsTotalBlocks, "Blocks of the KV cache");
	const oldUsage = gauge(ENGINE_METRICS.kvstatsGpuCacheUsagePercent, "Share of the KV cache in use, 0 to 1");
	const oldHitRate = gauge(
		ENGINE_METRICS.kvstatsGpuPrefixCacheHitRate,
		"Share of prompt tokens found in the KV cache, 0 to 1",
	);
	const running = gauge(ENGINE_METRICS.runningRequests, "Sequences that the engine computes");
	const waiting = gauge(ENGINE_METRICS.waitingRequests, "Sequences that wait for the engine");
	gauge(ENGINE_METRICS.modelLoadSeconds, "Time that loading the model took, seconds").set(info.loadSeconds);
	metrics
		.createGauge(ENGINE_METRICS.deviceInfo, "1; the labels say where the model runs, and why not on CUDA", {
			...labels,
			[LABELS.device]: info.device,
			[LABELS.note]: info.deviceNote ?? "",
		})
		.set(1);

	const counters: [keyof EngineStats, (by: number) => void][] = (
		[
			["prefillTokens", ENGINE_METRICS.prefillTokensTotal, "Prompt tokens computed"],
			["decodeTokens", ENGINE_METRICS.decodeTokensTotal, "Tokens generated"],
			["steps", ENGINE_METRICS.stepsTotal, "Engine steps"],
			["stepSeconds", ENGINE_METRICS.stepSecondsTotal, "Time in engine steps, seconds"],
			["modelSeconds", ENGINE_METRICS.modelSecondsTotal, "Time in the model alone, seconds"],
			["preemptions", ENGINE_METRICS.preemptionsTotal, "Sequences set back because the cache was full"],
			["cacheQueryTokens", ENGINE_METRICS.cacheQueryTokensTotal, "Prompt tokens looked for in the KV cache"],
			["cacheHitTokens", ENGINE_METRICS.cacheHitTokensTotal, "Prompt tokens found in the KV cache"],
			["draftTokens", ENGINE_METRICS.draftTokensTotal, "Tokens guessed by speculation"],
			["acceptedTokens", ENGINE_METRICS.acceptedTokensTotal, "Guessed tokens that were right"],
		] as const
	).map(([key, name, help]) => {
		const counter = metrics.createCounter(name, help, labels);
		return [key, (by) => counter.inc(by)];
	});
	const seen = new Map<keyof EngineStats, number>();

	metrics.addUpdateCallback(() => {
		const stats = engine.stats();
		const share = stats.totalBlocks === 0 ? 0 : stats.usedBlocks / stats.totalBlocks;
		const hits = stats.cacheQueryTokens === 0 ? 0 : stats.cacheHitTokens / stats.cacheQueryTokens;
		totalBlocks.set(stats.totalBlocks);
		cachedBlocks.set(stats.cachedBlocks);
		oldTotal.set(stats.totalBlocks);
		oldActive.set(stats.usedBlocks);
		usage.set(share);
		oldUsage.set(share);
		hitRate.set(hits);
		oldHitRate.set(hits);
		running.set(stats.running);
		waiting.set(stats.waiting);
		// The engine counts by itself; a counter of the page is moved on by what came since.
		for (const [key, increase] of counters) {
			const now = stats[key];
			const before = seen.get(key) ?? 0;
			if (now > before) increase(now - before);
			seen.set(key, now);
		}
	});
}
