// SPDX-License-Identifier: Apache-2.0
/** Which parts of `nvext` a client asked to see in answers. */
export interface NvextReport {
	readonly anything: boolean;
	readonly workerId: boolean;
	readonly timing: boolean;
	readonly promptLogprobs: boolean;
}

/** Who a prompt went to, and what was known then. */
export interface LegWorkers {
	/** The same worker twice where one does both. */
	prefillId: bigint | undefined;
	decodeId: bigint | undefined;
	/** Data-parallel ranks; undefined where the router does not choose them. */
	prefillRank: number | undefined;
	decodeRank: number | undefined;
	/** The share of the prompt's blocks that the prefill worker had cached; undefined where the router does not know. */
	hitRate: number | undefined;
	/** Requests that waited for their turn at that router when it was chosen. */
	queueDepth: number | undefined;
	/** `performance.now()` when a prefill worker had computed the prompt; undefined: the decode worker does it. */
	prefilledAt: number | undefined;
}

/** What the report is made of. */
export interface ReportSource {
	readonly workers: LegWorkers;
	/** `performance.now()` when the request was sent, and when its first delta came. */
	readonly sentAt: number;
	readonly firstAt: number | undefined;
	readonly promptLogprobs: { json(): string | undefined } | undefined;
	readonly tracker: { readonly request: { readonly exchange: { readonly receivedAt: number } } };
}

/** Reads `nvext.extra_fields`; names that we do not have are ignored, as Dynamo does. */
export function nvextReport(extraFields: readonly string[] | null | undefined): NvextReport {
	const workerId = extraFields?.includes("worker_id") ?? false;
	const timing = extraFields?.includes("timing") ?? false;
	const promptLogprobs = extraFields?.includes("prompt_logprobs") ?? false;
	return { anything: workerId || timing || promptLogprobs, workerId, timing, promptLogprobs };
}

/**
 * The `nvext` member of an answer or chunk: the worker on every chunk, timings (milliseconds) and the prompt's
 * log-probabilities on the last one only. Undefined when there is nothing to say.
 */
export function nvextJson(report: NvextReport, source: ReportSource, last: boolean): string | undefined {
	const parts: string[] = [];
	if (report.workerId && source.workers.prefillId !== undefined) parts.push(`"worker_id":${workerIds(source.workers)}`);
	if (report.timing && last) {
		const now = performance.now();
		const { receivedAt } = source.tracker.request.exchange;
		const firstAt = source.firstAt ?? now;
		const timing = {
			request_received_ms: Math.round(performance.timeOrigin + receivedAt),
			prefill_wait_time_ms: source.sentAt - receivedAt,
			prefill_time_ms: firstAt - source.sentAt,
			ttft_ms: firstAt - receivedAt,
			total_time_ms: now - receivedAt,
			...routerTiming(source),
		};
		parts.push(`"timing":${JSON.stringify(timing)}`);
	}
	if (report.promptLogprobs && last) {
		const json = source.promptLogprobs?.json();
		if (json !== undefined) parts.push(`"prompt_logprobs":${json}`);
	}
	return parts.length === 0 ? undefined : `{${parts.join(",")}}`;
}

/** JSON of the ids, in Dynamo's order; what is not known is left out. */
export function workerIds({
	prefillId,
	prefillRank,
	decodeId,
	decodeRank,
}: Pick<LegWorkers, "prefillId" | "prefillRank" | "decodeId" | "decodeRank">): string {
	// On every chunk of a stream: put together by hand, which ids and ranks need no more than.
	const members: string[] = [];
	if (prefillId !== undefined) members.push(`"prefill_worker_id":${prefillId}`);
	if (prefillRank !== undefined) members.push(`"prefill_dp_rank":${prefillRank}`);
	if (decodeId !== undefined) members.push(`"decode_worker_id":${decodeId}`);
	if (decodeRank !== undefined) members.push(`"decode_dp_rank":${decodeRank}`);
	return `{${members.join(",")}}`;
}

/** What there is to say only with a router that weighs, or with a prefill worker. */
function routerTiming({ workers, firstAt }: ReportSource): Record<string, number> {
	const { hitRate, queueDepth, prefilledAt, prefillId, decodeId } = workers;
	const handedOver = decodeId !== undefined && prefillId !== decodeId && firstAt !== undefined;
	// The prefill worker may say that it is done only after the first token.
	const transfer = handedOver ? Math.max(0, firstAt - (prefilledAt ?? firstAt)) : undefined;
	return {
		...(hitRate === undefined ? {} : { kv_hit_rate: hitRate, router_queue_depth: queueDepth ?? 0 }),
		...(transfer === undefined ? {} : { kv_transfer_estimated_latency_ms: transfer }),
	};
}
