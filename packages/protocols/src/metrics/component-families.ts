// SPDX-License-Identifier: Apache-2.0
import { FRONTEND_LABELS, LABELS } from "../metric-names.js";
import { BUCKET_RANGES, computedBuckets } from "./computed-buckets.js";
import { counter, gauge, histogram, type MetricFamily } from "./metric-family.js";
import { MORE_LABELS } from "./more-labels.js";

const SMALL_COUNTS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
const FRACTIONS = [
	0, 0.05, 0.1, 0.15000000000000002, 0.2, 0.25, 0.30000000000000004, 0.35000000000000003, 0.4, 0.45, 0.5, 0.55,
	0.6000000000000001, 0.65, 0.7000000000000001, 0.75, 0.8, 0.8500000000000001, 0.9, 0.9500000000000001, 1,
];
const OVERLAP_BLOCKS = [0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192];
const SHARED_BLOCKS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048];

/** Families of served endpoints, of the runtime and of routers inside of it, below `dynamo_component`; by name. */
export const COMPONENT_FAMILIES = {
	cancellationTotal: counter("cancellation_total", "Requests cancelled by the caller or lost with it", [
		LABELS.component,
		LABELS.endpoint,
		LABELS.namespace,
		LABELS.workerId,
	]),
	ckfMutationTotal: counter("ckf_mutation_total", "Always 0: the index here is no cuckoo filter", [
		LABELS.component,
		LABELS.namespace,
		MORE_LABELS.outcome,
		LABELS.workerId,
	]),
	errorsTotal: counter("errors_total", "Requests that failed in the endpoint, by kind", [
		LABELS.component,
		LABELS.endpoint,
		LABELS.namespace,
		LABELS.errorType,
		LABELS.workerId,
	]),
	inflightRequests: gauge("inflight_requests", "Requests that the endpoint works on", [
		LABELS.component,
		LABELS.endpoint,
		LABELS.namespace,
		LABELS.workerId,
	]),
	kvCacheEventWarnings: counter("kv_cache_event_warnings", "KV events that looked wrong", [
		LABELS.component,
		LABELS.namespace,
		MORE_LABELS.warningKind,
		LABELS.workerId,
	]),
	kvCacheEventsApplied: counter("kv_cache_events_applied", "KV events put into the index, by outcome", [
		LABELS.component,
		LABELS.namespace,
		MORE_LABELS.eventType,
		FRONTEND_LABELS.status,
		LABELS.workerId,
	]),
	kvPublisherEnginesDroppedEventsTotal: counter(
		"kv_publisher_engines_dropped_events_total",
		"KV events that an engine lost, by the gaps in their ids",
		[LABELS.component, LABELS.namespace, LABELS.workerId],
	),
	requestBytesTotal: counter("request_bytes_total", "Bytes of requests", [
		LABELS.component,
		LABELS.endpoint,
		LABELS.namespace,
		LABELS.workerId,
	]),
	requestDurationSeconds: histogram(
		"request_duration_seconds",
		"Time that the endpoint worked on a request, seconds",
		[LABELS.component, LABELS.endpoint, LABELS.namespace, LABELS.workerId],
		[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600],
	),
	requestsTotal: counter("requests_total", "Requests that the endpoint began", [
		LABELS.component,
		LABELS.endpoint,
		LABELS.namespace,
		LABELS.workerId,
	]),
	responseBytesTotal: counter("response_bytes_total", "Bytes of responses", [
		LABELS.component,
		LABELS.endpoint,
		LABELS.namespace,
		LABELS.workerId,
	]),
	routerActiveSequenceIngressDrainBatchesTotal: counter(
		"router_active_sequence_ingress_drain_batches_total",
		"Messages about requests of other routers, with --router-replica-sync",
		[
			LABELS.component,
			LABELS.namespace,
			LABELS.model,
			MORE_LABELS.routingGroup,
			LABELS.workerId,
			FRONTEND_LABELS.workerType,
		],
	),
	routerActiveSequenceIngressEventsAppliedTotal: counter(
		"router_active_sequence_ingress_events_applied_total",
		"Events about requests of other routers that were applied, with --router-replica-sync",
		[
			LABELS.component,
			LABELS.namespace,
			LABELS.model,
			MORE_LABELS.routingGroup,
			LABELS.workerId,
			FRONTEND_LABELS.workerType,
		],
	),
	routerActiveSequenceIngressQueueDepth: gauge(
		"router_active_sequence_ingress_queue_depth",
		"Always 0: such events are applied as they come",
		[
			LABELS.component,
			LABELS.namespace,
			LABELS.model,
			MORE_LABELS.routingGroup,
			LABELS.workerId,
			FRONTEND_LABELS.workerType,
		],
	),
	routerActiveSequenceZmqIngressDroppedEventsTotal: counter(
		"router_active_sequence_zmq_ingress_dropped_events_total",
		"Always 0: such events wait nowhere, so none is dropped",
		[LABELS.component, LABELS.namespace, LABELS.workerId],
	),
	routerActiveSequenceZmqIngressEnvelopeDecodeErrorsTotal: counter(
		"router_active_sequence_zmq_ingress_envelope_decode_errors_total",
		"Such messages that could not be read, or were for nobody here",
		[LABELS.component, LABELS.namespace, LABELS.workerId],
	),
	routerActiveSequenceZmqIngressForcedAbortsTotal: counter(
		"router_active_sequence_zmq_ingress_forced_aborts_total",
		"Always 0: no reader has to be ended by force",
		[LABELS.component, LABELS.namespace, LABELS.workerId],
	),
	routerActiveSequenceZmqIngressIdentityErrorsTotal: counter(
		"router_active_sequence_zmq_ingress_identity_errors_total",
		"Always 0: counted with those that could not be read",
		[LABELS.component, LABELS.namespace, LABELS.workerId],
	),
	routerActiveSequenceZmqIngressOutOfOrderTotal: counter(
		"router_active_sequence_zmq_ingress_out_of_order_total",
		"Always 0: one that comes late is no longer a gap",
		[LABELS.component, LABELS.namespace, LABELS.workerId],
	),
	routerActiveSequenceZmqIngressPayloadDecodeErrorsTotal: counter(
		"router_active_sequence_zmq_ingress_payload_decode_errors_total",
		"Such messages whose payload could not be read",
		[LABELS.component, LABELS.namespace, LABELS.workerId],
	),
	routerActiveSequenceZmqIngressReconnectsTotal: counter(
		"router_active_sequence_zmq_ingress_reconnects_total",
		"Always 0: ZeroMQ and NATS connect again by themselves",
		[LABELS.component, LABELS.namespace, LABELS.workerId],
	),
	routerActiveSequenceZmqIngressReplacementsTotal: counter(
		"router_active_sequence_zmq_ingress_replacements_total",
		"Always 0: a new publisher has a new id",
		[LABELS.component, LABELS.namespace, LABELS.workerId],
	),
	routerActiveSequenceZmqIngressSequenceGapsTotal: counter(
		"router_active_sequence_zmq_ingress_sequence_gaps_total",
		"Such messages that are missing by their numbers",
		[LABELS.component, LABELS.namespace, LABELS.workerId],
	),
	routerActiveSequenceZmqIngressSources: gauge(
		"router_active_sequence_zmq_ingress_sources",
		"Publishers of such messages that are listened to",
		[LABELS.component, LABELS.namespace, LABELS.workerId],
	),
	routerApproximateCacheConfiguredPolicy: gauge(
		"router_approximate_cache_configured_policy",
		"1 for the configured policy of the approximate cache",
		[LABELS.component, LABELS.namespace, MORE_LABELS.policy, LABELS.workerId],
	),
	routerApproximateCacheEffectivePolicy: gauge(
		"router_approximate_cache_effective_policy",
		"1 for the policy of the approximate cache in force",
		[LABELS.component, LABELS.namespace, MORE_LABELS.policy, LABELS.workerId],
	),
	routerApproximateLruEvictedBlocksTotal: counter(
		"router_approximate_lru_evicted_blocks_total",
		"Blocks evicted from the approximate cache",
		[LABELS.component, LABELS.namespace, LABELS.workerId],
	),
	routerApproximateLruEvictionBatchesTotal: counter(
		"router_approximate_lru_eviction_batches_total",
		"Times that blocks were evicted from the approximate cache",
		[LABELS.component, LABELS.namespace, LABELS.workerId],
	),
	routerApproximateLruFallbackActivationsTotal: counter(
		"router_approximate_lru_fallback_activations_total",
		"Ranks of workers that were to be kept by use and are by time, for their size is not known",
		[LABELS.component, LABELS.namespace, LABELS.workerId],
	),
	routerApproximateLruLeases: gauge(
		"router_approximate_lru_leases",
		"Always 0: nothing is leased in the approximate cache",
		[LABELS.component, LABELS.namespace, LABELS.workerId],
	),
	routerApproximateLruMessagesPerRequest: histogram(
		"router_approximate_lru_messages_per_request",
		"Always empty: a request changes the approximate cache at once",
		[LABELS.component, LABELS.namespace, LABELS.workerId],
		SMALL_COUNTS,
	),
	routerApproximateLruMutationQueueDepth: gauge(
		"router_approximate_lru_mutation_queue_depth",
		"Always 0: a request changes the approximate cache at once",
		[LABELS.component, LABELS.namespace, LABELS.workerId],
	),
	routerApproximateLruMutationWaitSeconds: histogram(
		"router_approximate_lru_mutation_wait_seconds",
		"Always empty: a request changes the approximate cache at once",
		[LABELS.component, LABELS.namespace, LABELS.workerId],
		computedBuckets(BUCKET_RANGES.mutationWaitSeconds),
	),
	routerApproximateLruOutputBatchesTotal: counter(
		"router_approximate_lru_output_batches_total",
		"Always 0: only prompts are believed to be cached",
		[LABELS.component, LABELS.namespace, LABELS.workerId],
	),
	routerInputSequenceTokens: histogram(
		"router_input_sequence_tokens",
		"Prompt tokens of a request at the router",
		[LABELS.component, LABELS.namespace, LABELS.model, FRONTEND_LABELS.phase, MORE_LABELS.routerId, LABELS.workerId],
		computedBuckets(BUCKET_RANGES.inputSequenceTokens),
	),
	routerInterTokenLatencySeconds: histogram(
		"router_inter_token_latency_seconds",
		"Mean time between two tokens of a request at the router, seconds",
		[LABELS.component, LABELS.namespace, MORE_LABELS.routerId, LABELS.workerId],
		computedBuckets(BUCKET_RANGES.routerInterTokenLatencySeconds),
	),
	routerKvBestEligibleCachedPrefixTokensTotal: counter(
		"router_kv_best_eligible_cached_prefix_tokens_total",
		"Cached prompt tokens at the best worker that could be chosen",
		[LABELS.component, LABELS.namespace, LABELS.model, FRONTEND_LABELS.phase, MORE_LABELS.routerId, LABELS.workerId],
	),
	routerKvEventSourceMismatchWorkers: gauge(
		"router_kv_event_source_mismatch_workers",
		"Workers without a proper source of KV events",
		[
			LABELS.component,
			LABELS.namespace,
			LABELS.model,
			MORE_LABELS.targetComponent,
			MORE_LABELS.targetEndpoint,
			MORE_LABELS.targetNamespace,
			LABELS.workerId,
			FRONTEND_LABELS.workerType,
		],
	),
	routerKvHitRate: histogram(
		"router_kv_hit_rate",
		"Share of the prompt blocks that the chosen worker should have, 0 to 1",
		[LABELS.component, LABELS.namespace, MORE_LABELS.routerId, LABELS.workerId],
		FRACTIONS,
	),
	routerKvSelectedCachedPrefixTokensTotal: counter(
		"router_kv_selected_cached_prefix_tokens_total",
		"Cached prompt tokens at the chosen worker",
		[LABELS.component, LABELS.namespace, LABELS.model, FRONTEND_LABELS.phase, MORE_LABELS.routerId, LABELS.workerId],
	),
	routerKvTransferEstimatedLatencySeconds: histogram(
		"router_kv_transfer_estimated_latency_seconds",
		"Time from the end of prefill to the first token of decode, seconds",
		[LABELS.component, LABELS.namespace, MORE_LABELS.routerId, LABELS.workerId],
		computedBuckets(BUCKET_RANGES.kvTransferSeconds),
	),
	routerKvWorkerReusedTokensTotal: counter(
		"router_kv_worker_reused_tokens_total",
		"Cached prompt tokens that the worker reported",
		[LABELS.component, LABELS.namespace, LABELS.model, FRONTEND_LABELS.phase, MORE_LABELS.routerId, LABELS.workerId],
	),
	routerKvZmqIngressBatchesTotal: counter(
		"router_kv_zmq_ingress_batches_total",
		"Messages with KV events that were read",
		[LABELS.component, LABELS.namespace, LABELS.workerId],
	),
	routerKvZmqIngressLifecycleTotal: counter(
		"router_kv_zmq_ingress_lifecycle_total",
		"What happened to sources of KV events: started, preconnected, activated, stopped, payload_decode_error",
		[MORE_LABELS.action, LABELS.component, LABELS.namespace, LABELS.workerId],
	),
	routerKvZmqIngressSources: gauge("router_kv_zmq_ingress_sources", "Publishers of KV events, by state", [
		LABELS.component,
		LABELS.namespace,
		MORE_LABELS.state,
		LABELS.workerId,
	]),
	routerNonMaxOverlapSelectionsTotal: counter(
		"router_non_max_overlap_selections_total",
		"Choices of a worker with less overlap than another",
		[LABELS.component, LABELS.namespace, MORE_LABELS.routerId, LABELS.workerId, FRONTEND_LABELS.workerType],
	),
	routerOutputSequenceTokens: histogram(
		"router_output_sequence_tokens",
		"Output tokens of a request at the router",
		[LABELS.component, LABELS.namespace, MORE_LABELS.routerId, LABELS.workerId],
		computedBuckets(BUCKET_RANGES.outputSequenceTokens),
	),
	routerOverlapBlocksLost: histogram(
		"router_overlap_blocks_lost",
		"Blocks of overlap given up by a choice",
		[LABELS.component, LABELS.namespace, MORE_LABELS.routerId, LABELS.workerId, FRONTEND_LABELS.workerType],
		OVERLAP_BLOCKS,
	),
	routerRemoteIndexerQueryFailuresTotal: counter(
		"router_remote_indexer_query_failures_total",
		"Questions that the index of another process did not answer",
		[LABELS.component, LABELS.namespace, MORE_LABELS.routerId, LABELS.workerId],
	),
	routerRemoteIndexerWriteFailuresTotal: counter(
		"router_remote_indexer_write_failures_total",
		"Choices that the index of another process did not take in",
		[LABELS.component, LABELS.namespace, MORE_LABELS.routerId, LABELS.workerId],
	),
	routerRequestsStartedTotal: counter("router_requests_started_total", "Requests that the router let in", [
		LABELS.component,
		LABELS.namespace,
		MORE_LABELS.routerId,
		LABELS.workerId,
	]),
	routerRequestsTotal: counter("router_requests_total", "Requests that ended at the router", [
		LABELS.component,
		LABELS.namespace,
		MORE_LABELS.routerId,
		LABELS.workerId,
	]),
	routerSharedCacheBeyondBlocks: histogram(
		"router_shared_cache_beyond_blocks",
		"Always empty: there is no cache that workers share",
		[LABELS.component, LABELS.namespace, MORE_LABELS.routerId, LABELS.workerId],
		SHARED_BLOCKS,
	),
	routerSharedCacheHitRate: histogram(
		"router_shared_cache_hit_rate",
		"Always empty: there is no cache that workers share",
		[LABELS.component, LABELS.namespace, MORE_LABELS.routerId, LABELS.workerId],
		FRACTIONS,
	),
	routerTimeToFirstTokenSeconds: histogram(
		"router_time_to_first_token_seconds",
		"Time to first token at the router, seconds",
		[LABELS.component, LABELS.namespace, MORE_LABELS.routerId, LABELS.workerId],
		computedBuckets(BUCKET_RANGES.timeToFirstTokenSeconds),
	),
	routerWorkerRegistered: gauge("router_worker_registered", "1 for each worker and rank that the router knows", [
		FRONTEND_LABELS.dpRank,
		LABELS.component,
		LABELS.namespace,
		MORE_LABELS.routerWorkerId,
		LABELS.workerId,
		FRONTEND_LABELS.workerType,
	]),
	uptimeSeconds: gauge("uptime_seconds", "Time since the start of the process, seconds", [LABELS.workerId]),
} as const satisfies Record<string, MetricFamily>;
