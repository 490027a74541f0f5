// SPDX-License-Identifier: Apache-2.0
// What a live view of a cluster shows, as JSON: `/dashboard/data` answers it, `dynamo top --json` prints it. null: not known.

/**
 * - ready: takes requests
 * - busy: too full for more
 * - failing: left aside, because it failed a moment ago
 * - starting: the frontend is still loading its model's files
 * - refused: its card differs from that of the workers that came first
 * - unreachable: in discovery, but its metrics page does not answer
 * - leaving: its endpoint is gone, its model not yet
 * - gone: left discovery within the last minute
 */
export type WorkerState = "ready" | "busy" | "failing" | "starting" | "refused" | "unreachable" | "leaving" | "gone";

export type WorkerRole = "aggregated" | "prefill" | "decode" | "encode";

/** A latency over the last seconds, in seconds. */
export interface LatencyView {
	readonly p50: number | null;
	readonly p99: number | null;
	readonly mean: number | null;
}

export interface ModelView {
	readonly name: string;
	/** A request would find a worker; null: no frontend says. */
	readonly ready: boolean | null;
	/** Tokens; 0: unknown. */
	readonly contextLength: number;
	/** Workers that take requests, and all, by role. */
	readonly workers: Readonly<Partial<Record<WorkerRole, { readonly ready: number; readonly all: number }>>>;
	/** Requests being handled, and of these those that wait for their first token. */
	readonly active: number | null;
	readonly queued: number | null;
	readonly requestsPerSecond: number | null;
	/** Share of the finished requests that ended with an error, 0 to 1; null when none finished. */
	readonly errorShare: number | null;
	readonly inputTokensPerSecond: number | null;
	readonly outputTokensPerSecond: number | null;
	/** Share of prompt tokens that were found in a cache, 0 to 1. */
	readonly cacheHitRate: number | null;
	readonly timeToFirstToken: LatencyView;
	readonly interTokenLatency: LatencyView;
	/** Since the frontend started. */
	readonly requestsTotal: number | null;
	readonly outputTokensTotal: number | null;
}

export interface WorkerView {
	/** Instance id, decimal; and as it stands in the label `worker_id`. */
	readonly id: string;
	readonly hex: string;
	readonly model: string;
	readonly namespace: string;
	readonly component: string;
	readonly endpoint: string;
	readonly role: WorkerRole;
	readonly state: WorkerState;
	/** Where requests go. */
	readonly address: string | null;
	readonly device: string | null;
	/** Its page of metrics; null: it has no system port, and what is known comes from its events. */
	readonly metricsUrl: string | null;
	readonly running: number | null;
	readonly waiting: number | null;
	/** Most requests at a time. */
	readonly slots: number | null;
	/** 0 to 1. */
	readonly kvUsage: number | null;
	readonly kvBlocks: number | null;
	/** Share of prompt tokens found in its cache over the last seconds, 0 to 1. */
	readonly cacheHitRate: number | null;
	/** Generated; for a prefill worker, prompt tokens computed. */
	readonly tokensPerSecond: number | null;
	readonly requestsPerSecond: number | null;
	/** Of the last request that a frontend sent it, seconds. */
	readonly lastTimeToFirstToken: number | null;
	readonly uptimeSeconds: number | null;
	/** Seconds since it left discovery; null while it is there. */
	readonly goneSeconds: number | null;
}

/** One second of the last minutes. */
export interface HistoryPoint {
	/** Milliseconds since 1970. */
	readonly at: number;
	readonly requestsPerSecond: number | null;
	readonly outputTokensPerSecond: number | null;
	readonly active: number | null;
	readonly queued: number | null;
	/** Median over all models, seconds. */
	readonly timeToFirstToken: number | null;
}

export interface ClusterSnapshot {
	readonly version: 1;
	readonly at: number;
	/** Rates and latencies are over so many seconds; 0 for the first look, which has none. */
	readonly windowSeconds: number;
	/** A frontend's numbers are in it. */
	readonly hasFrontend: boolean;
	readonly uptimeSeconds: number | null;
	readonly models: readonly ModelView[];
	readonly workers: readonly WorkerView[];
	readonly history: readonly HistoryPoint[];
}
