// SPDX-License-Identifier: Apache-2.0
// Turns what was collected into the rows of the live view.
import { type EndpointRecord, effectiveContextLength, type ModelRecord } from "@dynamo-ts/protocols/internal";
import type { LatencyView, ModelView, WorkerRole, WorkerState, WorkerView } from "./cluster-view.js";
import { type FrontendReading, latencyBetween } from "./frontend-reading.js";
import type { ToldLoad } from "./load-listener.js";
import type { WorkerReading } from "./worker-pages.js";

/** A worker of discovery. */
export interface KnownWorker {
	readonly record: ModelRecord;
	/** undefined: its endpoint is not there. */
	readonly endpoint: EndpointRecord | undefined;
	readonly metricsUrl: string | undefined;
	/** Under which its page is found; undefined: it has none. */
	readonly page: string | undefined;
	/** When it left discovery, milliseconds since 1970. */
	readonly goneAt: number | undefined;
}

/** What is known of workers beside discovery. */
export interface WorkerFacts {
	readonly states: ReadonlyMap<bigint, WorkerState>;
	readonly loads: ReadonlyMap<bigint, ToldLoad>;
	page(url: string): { readonly first: WorkerReading; readonly last: WorkerReading } | undefined;
	readonly lastTimeToFirstToken: ReadonlyMap<string, number>;
	/** Milliseconds since 1970. */
	readonly now: number;
}

const ROLE_ORDER: readonly WorkerRole[] = ["aggregated", "encode", "prefill", "decode"];

/** Rows in the order of model, role and id; those that are gone at the end of theirs. */
export function viewOfWorkers(workers: readonly KnownWorker[], facts: WorkerFacts): WorkerView[] {
	const views = workers.map((worker) => viewOfWorker(worker, facts));
	const rank = (view: WorkerView) => ROLE_ORDER.indexOf(view.role) + (view.state === "gone" ? 10 : 0);
	return views.sort((a, b) => compare(a.model, b.model) || rank(a) - rank(b) || compare(a.hex, b.hex));
}

function viewOfWorker(
	{ record, endpoint, metricsUrl, page: key, goneAt }: KnownWorker,
	facts: WorkerFacts,
): WorkerView {
	const id = record.instance_id;
	const { runtime_config } = record.card_json;
	const page = key === undefined ? undefined : facts.page(key);
	// Of one that is gone the last words mean nothing.
	const told = goneAt === undefined ? facts.loads.get(id) : undefined;
	const kvBlocks = runtime_config?.total_kv_blocks ?? null;
	const role = record.card_json.worker_type ?? "aggregated";
	const usedShare = told?.usedBlocks === undefined || !kvBlocks ? null : Math.min(1, told.usedBlocks / kvBlocks);
	const rate = (key: "tokens" | "promptTokens" | "requests") => rateOf(page, key);
	return {
		id: String(id),
		hex: id.toString(16),
		model: record.card_json.display_name,
		namespace: record.namespace,
		component: record.component,
		endpoint: record.endpoint,
		role,
		state: stateOf(id, { endpoint, goneAt, silent: key !== undefined && page === undefined }, facts),
		address: endpoint === undefined ? null : addressOf(endpoint),
		device: endpoint?.device_type ?? null,
		metricsUrl: metricsUrl ?? null,
		running: page?.last.running ?? told?.running ?? null,
		waiting: page?.last.waiting ?? told?.waiting ?? null,
		slots: runtime_config?.max_num_seqs ?? null,
		kvUsage: page?.last.kvUsage ?? usedShare,
		kvBlocks,
		cacheHitRate: hitRateOf(page),
		tokensPerSecond: rate(role === "prefill" ? "promptTokens" : "tokens"),
		requestsPerSecond: rate("requests"),
		lastTimeToFirstToken: facts.lastTimeToFirstToken.get(String(id)) ?? null,
		uptimeSeconds: page?.last.uptimeSeconds ?? null,
		goneSeconds: goneAt === undefined ? null : Math.max(0, (facts.now - goneAt) / 1000),
	};
}

function stateOf(
	id: bigint,
	seen: { readonly endpoint: unknown; readonly goneAt: number | undefined; readonly silent: boolean },
	facts: WorkerFacts,
): WorkerState {
	if (seen.goneAt !== undefined) return "gone";
	if (seen.endpoint === undefined) return "leaving";
	const known = facts.states.get(id) ?? "ready";
	return known === "ready" && seen.silent ? "unreachable" : known;
}

/** `host:port` or the NATS subject. */
function addressOf({ transport }: EndpointRecord): string {
	return "tcp" in transport ? (transport.tcp.split("/", 1)[0] as string) : transport.nats_tcp;
}

type Window<T> = { readonly first: T; readonly last: T } | undefined;

function rateOf(page: Window<WorkerReading>, key: "tokens" | "promptTokens" | "requests"): number | null {
	if (page === undefined) return null;
	const [before, after] = [page.first[key], page.last[key]];
	const seconds = (page.last.at - page.first.at) / 1000;
	return before === null || after === null || seconds <= 0 ? null : Math.max(0, after - before) / seconds;
}

/** Over the window; where nothing was looked for in it, since the worker started. */
function hitRateOf(page: Window<WorkerReading>): number | null {
	if (page === undefined) return null;
	const { first, last } = page;
	if (last.cacheQueries === null || last.cacheHits === null) return null;
	const queries = last.cacheQueries - (first.cacheQueries ?? 0);
	if (queries > 0) return (last.cacheHits - (first.cacheHits ?? 0)) / queries;
	return last.cacheQueries > 0 ? last.cacheHits / last.cacheQueries : null;
}

/** One row for each model, by public name and alias. */
export function viewOfModels(
	records: readonly ModelRecord[],
	workers: readonly WorkerView[],
	frontend: Window<FrontendReading>,
): ModelView[] {
	const names = new Set(records.map(({ card_json }) => card_json.display_name));
	for (const { model } of workers) names.add(model);
	// Aliases.
	for (const [name, { ready }] of frontend?.last.models ?? []) if (ready !== null) names.add(name);
	return [...names].sort(compare).map((name) => viewOfModel(name, records, workers, frontend));
}

function viewOfModel(
	name: string,
	records: readonly ModelRecord[],
	workers: readonly WorkerView[],
	frontend: Window<FrontendReading>,
): ModelView {
	const counts: Partial<Record<WorkerRole, { ready: number; all: number }>> = {};
	for (const { model, role, state } of workers) {
		if (model !== name || state === "gone") continue;
		const count = counts[role] ?? { ready: 0, all: 0 };
		counts[role] = count;
		count.all++;
		if (state === "ready" || state === "busy") count.ready++;
	}
	const last = frontend?.last.models.get(name);
	const first = frontend?.first.models.get(name);
	const seconds = frontend === undefined ? 0 : (frontend.last.at - frontend.first.at) / 1000;
	const grown = (key: "requests" | "errors" | "outputTokens" | "inputTokens" | "cachedTokens"): number | null =>
		last === undefined || seconds <= 0 ? null : Math.max(0, last[key] - (first?.[key] ?? 0));
	const rate = (key: Parameters<typeof grown>[0]): number | null => {
		const by = grown(key);
		return by === null ? null : by / seconds;
	};
	const latency = (key: "timeToFirstToken" | "interTokenLatency"): LatencyView =>
		last === undefined || seconds <= 0
			? { p50: null, p99: null, mean: null }
			: latencyBetween([[first?.[key], last[key]]]);
	const [requests, input] = [grown("requests"), grown("inputTokens")];
	return {
		name,
		ready: last?.ready ?? null,
		contextLength: Math.max(
			0,
			...records
				.filter(({ card_json }) => card_json.display_name === name)
				.map(({ card_json }) => effectiveContextLength(card_json)),
		),
		workers: counts,
		active: last?.active ?? (last === undefined ? null : 0),
		queued: last?.queued ?? (last === undefined ? null : 0),
		requestsPerSecond: rate("requests"),
		errorShare: requests ? (grown("errors") as number) / requests : null,
		inputTokensPerSecond: rate("inputTokens"),
		outputTokensPerSecond: rate("outputTokens"),
		cacheHitRate: input ? (grown("cachedTokens") as number) / input : null,
		timeToFirstToken: latency("timeToFirstToken"),
		interTokenLatency: latency("interTokenLatency"),
		requestsTotal: last?.requests ?? null,
		outputTokensTotal: last?.outputTokens ?? null,
	};
}

function compare(a: string, b: string): number {
	return a < b ? -1 : a > b ? 1 : 0;
}
