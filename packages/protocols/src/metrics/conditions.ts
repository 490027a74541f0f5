// SPDX-License-Identifier: Apache-2.0
// Families that are not always shown: one whose labels have no values yet is not on the page at all.
import type { METRICS } from "./metric-catalogue.js";

/** What families wait for, as the documents say it. */
export const SHOWN = {
	kv: "router mode `kv`",
	failure: "once something has failed",
	migration: "once a stream was to go on elsewhere",
	remoteIndex: "`--use-remote-indexer`",
} as const;

type Group = keyof typeof METRICS;
type Conditions = { readonly [G in Group]?: { readonly [K in keyof (typeof METRICS)[G]]?: string } };

const { kv, failure, migration, remoteIndex } = SHOWN;

const CONDITIONS: Conditions = {
	frontend: {
		failuresTotal: failure,
		modelMigrationDurationSeconds: migration,
		routerAdmissionReceivedTotal: kv,
		routerAdmissionRejectedTotal: kv,
		routerCacheWaitsTotal: kv,
		routerQueueBackpressureTotal: kv,
		routerQueuePendingCachedTokens: kv,
		routerQueuePendingIslTokens: kv,
		routerQueuePendingRequests: kv,
		workerActiveDecodeBlocks: kv,
		workerActivePrefillTokens: kv,
	},
	component: {
		errorsTotal: failure,
		ckfMutationTotal: kv,
		kvCacheEventWarnings: kv,
		kvCacheEventsApplied: kv,
		routerActiveSequenceIngressDrainBatchesTotal: kv,
		routerActiveSequenceIngressEventsAppliedTotal: kv,
		routerActiveSequenceIngressQueueDepth: kv,
		routerActiveSequenceZmqIngressDroppedEventsTotal: kv,
		routerActiveSequenceZmqIngressEnvelopeDecodeErrorsTotal: kv,
		routerActiveSequenceZmqIngressForcedAbortsTotal: kv,
		routerActiveSequenceZmqIngressIdentityErrorsTotal: kv,
		routerActiveSequenceZmqIngressOutOfOrderTotal: kv,
		routerActiveSequenceZmqIngressPayloadDecodeErrorsTotal: kv,
		routerActiveSequenceZmqIngressReconnectsTotal: kv,
		routerActiveSequenceZmqIngressReplacementsTotal: kv,
		routerActiveSequenceZmqIngressSequenceGapsTotal: kv,
		routerActiveSequenceZmqIngressSources: kv,
		routerApproximateCacheConfiguredPolicy: kv,
		routerApproximateCacheEffectivePolicy: kv,
		routerApproximateLruEvictedBlocksTotal: kv,
		routerApproximateLruEvictionBatchesTotal: kv,
		routerApproximateLruFallbackActivationsTotal: kv,
		routerApproximateLruLeases: kv,
		routerApproximateLruMessagesPerRequest: kv,
		routerApproximateLruMutationQueueDepth: kv,
		routerApproximateLruMutationWaitSeconds: kv,
		routerApproximateLruOutputBatchesTotal: kv,
		routerKvBestEligibleCachedPrefixTokensTotal: kv,
		routerKvEventSourceMismatchWorkers: kv,
		routerKvSelectedCachedPrefixTokensTotal: kv,
		routerKvWorkerReusedTokensTotal: kv,
		routerKvZmqIngressBatchesTotal: kv,
		routerKvZmqIngressLifecycleTotal: kv,
		routerKvZmqIngressSources: kv,
		routerWorkerRegistered: kv,
		routerRemoteIndexerQueryFailuresTotal: remoteIndex,
		routerRemoteIndexerWriteFailuresTotal: remoteIndex,
	},
	event: { kvEventsMissing: kv },
	kvTransfer: { failuresTotal: failure },
};

/** When a family is shown; undefined: from the start, or as soon as there is a model. @param key its own in the group. */
export function shownWhen(group: Group, key: string): string | undefined {
	return (CONDITIONS[group] as Readonly<Record<string, string>> | undefined)?.[key];
}
