// SPDX-License-Identifier: Apache-2.0
import { stringifyJson } from "@dynamo-ts/protocols/internal";

/** Which parts of `nvext` a client asked to see in answers. */
export interface NvextReport {
	readonly anything: boolean;
	readonly workerId: boolean;
	readonly timing: boolean;
	readonly promptLogprobs: boolean;
}

/** What the report is made of. */
export interface ReportSource {
	readonly workerId: bigint | undefined;
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
	if (report.workerId && source.workerId !== undefined) {
		const id = source.workerId;
		parts.push(`"worker_id":${stringifyJson({ prefill_worker_id: id, decode_worker_id: id })}`);
	}
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
		};
		parts.push(`"timing":${JSON.stringify(timing)}`);
	}
	if (report.promptLogprobs && last) {
		const json = source.promptLogprobs?.json();
		if (json !== undefined) parts.push(`"prompt_logprobs":${json}`);
	}
	return parts.length === 0 ? undefined : `{${parts.join(",")}}`;
}
