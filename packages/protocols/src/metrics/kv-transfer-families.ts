// SPDX-License-Identifier: Apache-2.0
import { FRONTEND_LABELS, LABELS } from "../metric-names.js";
import { counter, gauge, histogram, type MetricFamily } from "./metric-family.js";
import { MORE_LABELS } from "./more-labels.js";

const OF_MODEL = [LABELS.component, LABELS.namespace, LABELS.model, LABELS.workerId];
const SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];

/** Hand-over of prompts from prefill to decode workers, below `dynamo_component`. The names are our own. */
export const KV_TRANSFER_FAMILIES = {
	pullsTotal: counter("kv_transfer_pulls_total", "Prompts to be fetched from a prefill worker, by how it ended", [
		...OF_MODEL,
		MORE_LABELS.result,
	]),
	failuresTotal: counter(
		"kv_transfer_failures_total",
		"Prompts that were computed because they could not be fetched, by reason",
		[...OF_MODEL, FRONTEND_LABELS.reason],
	),
	bytesTotal: counter("kv_transfer_bytes_total", "Bytes of keys and values sent and received", [
		...OF_MODEL,
		MORE_LABELS.direction,
		MORE_LABELS.transport,
	]),
	holdsTotal: counter("kv_transfer_holds_total", "Prompts kept for decode workers, by what became of them", [
		...OF_MODEL,
		MORE_LABELS.outcome,
	]),
	heldBlocks: gauge("kv_transfer_held_blocks", "Blocks kept for decode workers", OF_MODEL),
	seconds: histogram("kv_transfer_seconds", "Time that fetching a prompt took, seconds", OF_MODEL, SECONDS),
} as const satisfies Record<string, MetricFamily>;
