// SPDX-License-Identifier: Apache-2.0
import type { Engine, EngineInfo, EngineStats } from "@dynamo-ts/engine";
import { LABELS, METRICS } from "@dynamo-ts/protocols/internal";
import type { Counter, MetricsRegistry } from "@dynamo-ts/runtime";
import { openCounter, openGauge } from "@dynamo-ts/runtime/internal";

const FAMILIES = METRICS.engine;
const COUNTERS = [
	["prefillTokens", FAMILIES.prefillTokensTotal],
	["decodeTokens", FAMILIES.decodeTokensTotal],
	["steps", FAMILIES.stepsTotal],
	["stepSeconds", FAMILIES.stepSecondsTotal],
	["modelSeconds", FAMILIES.modelSecondsTotal],
	["preemptions", FAMILIES.preemptionsTotal],
	["cacheQueryTokens", FAMILIES.cacheQueryTokensTotal],
	["cacheHitTokens", FAMILIES.cacheHitTokensTotal],
	["draftTokens", FAMILIES.draftTokensTotal],
	["acceptedTokens", FAMILIES.acceptedTokensTotal],
] as const satisfies readonly (readonly [keyof EngineStats, unknown])[];

/** Puts an engine's numbers on a metrics page; they are read when the page is. */
export function registerEngineMetrics(metrics: MetricsRegistry, engine: Engine, info: EngineInfo, model: string): void {
	const labels = { [LABELS.model]: model };
	const totalBlocks = openGauge(metrics, FAMILIES.totalBlocks, labels);
	const cachedBlocks = openGauge(metrics, FAMILIES.cachedBlocks, labels);
	const usage = openGauge(metrics, FAMILIES.gpuCacheUsagePercent, labels);
	const hitRate = openGauge(metrics, FAMILIES.kvCacheHitRate, labels);
	const oldActive = openGauge(metrics, FAMILIES.kvstatsActiveBlocks, labels);
	const oldTotal = openGauge(metrics, FAMILIES.kvstatsTotalBlocks, labels);
	const oldUsage = openGauge(metrics, FAMILIES.kvstatsGpuCacheUsagePercent, labels);
	const oldHitRate = openGauge(metrics, FAMILIES.kvstatsGpuPrefixCacheHitRate, labels);
	const running = openGauge(metrics, FAMILIES.runningRequests, labels);
	const waiting = openGauge(metrics, FAMILIES.waitingRequests, labels);
	openGauge(metrics, FAMILIES.modelLoadSeconds, labels).set(info.loadSeconds);
	openGauge(metrics, FAMILIES.deviceInfo, {
		...labels,
		[LABELS.device]: info.device,
		[LABELS.note]: info.deviceNote ?? "",
	}).set(1);
	const follow = followCounters(COUNTERS.map(([key, family]) => [key, openCounter(metrics, family, labels)]));

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
		follow(stats);
	});
}

/**
 * The engine counts by itself; counters of the page are moved on by what came since.
 * @returns to be called with the engine's numbers.
 */
export function followCounters(
	counters: readonly (readonly [keyof EngineStats, Counter])[],
): (stats: EngineStats) => void {
	const seen = new Map<keyof EngineStats, number>();
	return (stats) => {
		for (const [key, counter] of counters) {
			const now = stats[key];
			const before = seen.get(key) ?? 0;
			if (now > before) counter.inc(now - before);
			seen.set(key, now);
		}
	};
}
