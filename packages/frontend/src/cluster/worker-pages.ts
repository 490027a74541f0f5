// SPDX-License-Identifier: Apache-2.0
// The metrics pages of workers. Discovery does not say where they are; but a worker with a system port serves its model's
// files there, and its card has their addresses.
import { GENERATE_ENDPOINT, type ModelDeploymentCard, WORKER_SERIES } from "@dynamo-ts/protocols/internal";
import { MetricsPage } from "./page-reader.js";

/** Longest time for one page, milliseconds; and its largest size, bytes. */
const PAGE_TIMEOUT_MS = 2000;
const MAX_PAGE_BYTES = 8 * 1024 * 1024;

const WANTED: ReadonlySet<string> = new Set(Object.values(WORKER_SERIES).flat());

/** Numbers of a page; null: not on it. */
export interface WorkerReading {
	/** Milliseconds since 1970. */
	readonly at: number;
	readonly running: number | null;
	readonly waiting: number | null;
	readonly kvUsage: number | null;
	readonly tokens: number | null;
	readonly promptTokens: number | null;
	readonly cacheHits: number | null;
	readonly cacheQueries: number | null;
	readonly requests: number | null;
	readonly uptimeSeconds: number | null;
}

/** Address of the metrics page of the worker with that card; undefined: it has no system port. */
export function metricsUrlOf(card: ModelDeploymentCard): string | undefined {
	for (const part of [card.model_info, card.tokenizer, card.gen_config]) {
		for (const file of Object.values(part ?? {})) {
			const path: unknown = (file as { path?: unknown } | null)?.path;
			if (typeof path === "string" && /^https?:\/\/[^/]+\/v1\/metadata\//.test(path))
				return `${new URL(path).origin}/metrics`;
		}
	}
	return undefined;
}

/** Reads a worker's page. */
export function readWorker(text: string): WorkerReading {
	const page = new MetricsPage(text, WANTED);
	const s = WORKER_SERIES;
	return {
		at: Date.now(),
		running: page.sumOfFirst(s.running, GENERATE_ENDPOINT),
		waiting: page.sumOfFirst(s.waiting),
		kvUsage: page.meanOfFirst(s.kvUsage),
		tokens: page.sumOfFirst(s.tokens),
		promptTokens: page.sumOfFirst(s.promptTokens),
		cacheHits: page.sumOfFirst(s.cacheHits),
		cacheQueries: page.sumOfFirst(s.cacheQueries),
		requests: page.sumOfFirst(s.requests, GENERATE_ENDPOINT),
		uptimeSeconds: page.meanOfFirst(s.uptime),
	};
}

/** The text at an address; undefined when it does not come in time, is too large, or is no success. */
export async function readPage(url: string, signal: AbortSignal): Promise<string | undefined> {
	try {
		const deadline = AbortSignal.any([signal, AbortSignal.timeout(PAGE_TIMEOUT_MS)]);
		const response = await fetch(url, { signal: deadline });
		const chunks: Uint8Array[] = [];
		let size = 0;
		for await (const chunk of response.body ?? []) {
			size += chunk.length;
			if (size > MAX_PAGE_BYTES) return undefined;
			chunks.push(chunk);
		}
		return response.ok ? Buffer.concat(chunks).toString("utf8") : undefined;
	} catch {
		return undefined;
	}
}
