// SPDX-License-Identifier: Apache-2.0
// The router's settings as environment variables give them; the `--router-*` flags set the same variables.
import { DynamoError, ENV } from "@dynamo-ts/protocols/internal";
import type { EnvReader } from "@dynamo-ts/runtime/internal";
import type { BusyThresholds } from "./kv/eligibility.js";
import { DEFAULT_KV_ROUTER_OPTIONS, type KvRouterOptions } from "./kv-options.js";
import { RouterPolicyConfig } from "./queue/policy-config.js";
import { PolicyProfile } from "./queue/policy-profile.js";
import { ROUTER_MODES, type RouterMode } from "./router.js";
import { SESSION_AFFINITY_MODES, type SessionAffinityOptions } from "./session-affinity.js";

/** The largest weight that makes sense to anybody. */
const MOST = 1_000_000;

/** A number that may be left out, or be "None", as Dynamo spells that; undefined then. */
function optionalNumber(read: EnvReader, name: string, max: number): number | undefined {
	const text = read.text(name, "none").toLowerCase();
	return text === "none" ? undefined : read.number(name, 0, 0, max);
}

function optionalSeconds(read: EnvReader, name: string): number | undefined {
	return read.text(name, "none").toLowerCase() === "none" ? undefined : read.seconds(name, 0);
}

/**
 * Undefined: sessions are nobody's affair.
 * @throws DynamoError `InvalidArgument` that names the variable, its value and what is valid.
 */
export function sessionAffinityFromEnv(read: EnvReader): SessionAffinityOptions | undefined {
	const mode = read.choice(ENV.DYN_ROUTER_SESSION_AFFINITY_MODE, SESSION_AFFINITY_MODES, "hard");
	const ttlMs = optionalSeconds(read, ENV.DYN_ROUTER_SESSION_AFFINITY_TTL_SECS);
	return ttlMs === undefined || ttlMs === 0 ? undefined : { ttlMs, mode };
}

/**
 * What the file of DYN_ROUTER_POLICY_CONFIG says; undefined: there is none.
 * @throws DynamoError `InvalidArgument` that names the file and what is wrong in it.
 */
export function policyConfigFromEnv(read: EnvReader): RouterPolicyConfig | undefined {
	const path = read.text(ENV.DYN_ROUTER_POLICY_CONFIG, "");
	return path === "" ? undefined : RouterPolicyConfig.fromFile(path);
}

/**
 * The policy: that of DYN_ROUTER_MODE, `kv` for the preset DYN_ROUTER_LOAD_AWARE.
 * @throws DynamoError `InvalidArgument` that names the variable, its value and what is valid.
 */
export function routerModeFromEnv(read: EnvReader): RouterMode {
	const mode = read.choice(ENV.DYN_ROUTER_MODE, ROUTER_MODES, "round-robin");
	return read.flag(ENV.DYN_ROUTER_LOAD_AWARE, false) ? "kv" : mode;
}

/** @throws DynamoError `InvalidArgument` that names the variable, its value and what is valid. */
export function busyThresholdsFromEnv(read: EnvReader): BusyThresholds {
	return {
		activeDecodeBlocks: optionalNumber(read, ENV.DYN_ACTIVE_DECODE_BLOCKS_THRESHOLD, 1),
		activePrefillTokens: optionalNumber(read, ENV.DYN_ACTIVE_PREFILL_TOKENS_THRESHOLD, Number.MAX_SAFE_INTEGER),
		activePrefillTokensFrac: optionalNumber(read, ENV.DYN_ACTIVE_PREFILL_TOKENS_THRESHOLD_FRAC, MOST),
	};
}

/** @throws DynamoError `InvalidArgument` that names the variable, its value and what is valid. */
export function kvRouterOptionsFromEnv(read: EnvReader): KvRouterOptions {
	const defaults = DEFAULT_KV_ROUTER_OPTIONS;
	const { weights } = defaults;
	const options: KvRouterOptions = {
		weights: {
			overlapScoreCredit: read.number(ENV.DYN_ROUTER_KV_OVERLAP_SCORE_CREDIT, weights.overlapScoreCredit, 0, MOST),
			overlapScoreCreditDecay: read.number(
				ENV.DYN_ROUTER_KV_OVERLAP_SCORE_CREDIT_DECAY,
				weights.overlapScoreCreditDecay,
				0,
				MOST,
			),
			prefillLoadScale: read.number(ENV.DYN_ROUTER_PREFILL_LOAD_SCALE, weights.prefillLoadScale, 0, MOST),
			decodeActiveRequestWeight: read.number(
				ENV.DYN_ROUTER_DECODE_ACTIVE_REQUEST_WEIGHT,
				weights.decodeActiveRequestWeight,
				0,
				MOST,
			),
			hostCacheHitWeight: read.number(ENV.DYN_ROUTER_HOST_CACHE_HIT_WEIGHT, weights.hostCacheHitWeight, 0, 1),
			diskCacheHitWeight: read.number(ENV.DYN_ROUTER_DISK_CACHE_HIT_WEIGHT, weights.diskCacheHitWeight, 0, 1),
			sharedCacheMultiplier: weights.sharedCacheMultiplier,
		},
		temperature: read.number(ENV.DYN_ROUTER_TEMPERATURE, defaults.temperature, 0, MOST),
		useKvEvents: read.flag(ENV.DYN_ROUTER_USE_KV_EVENTS, defaults.useKvEvents),
		ttlMs: read.seconds(ENV.DYN_ROUTER_TTL_SECS, defaults.ttlMs / 1000),
		trackActiveBlocks: read.flag(ENV.DYN_ROUTER_TRACK_ACTIVE_BLOCKS, defaults.trackActiveBlocks),
		trackPrefillTokens: read.flag(ENV.DYN_ROUTER_TRACK_PREFILL_TOKENS, defaults.trackPrefillTokens),
		assumeKvReuse: read.flag(ENV.DYN_ROUTER_ASSUME_KV_REUSE, defaults.assumeKvReuse),
		expiryMs: read.seconds(ENV.DYN_ROUTER_ACTIVE_REQUEST_EXPIRY_SECS, defaults.expiryMs / 1000),
		eventsDeadlineMs: defaults.eventsDeadlineMs,
		approximateCachePolicy: read.choice(ENV.DYN_ROUTER_APPROXIMATE_CACHE_POLICY, ["ttl", "lru"], "ttl"),
		predictedTtlMs: optionalSeconds(read, ENV.DYN_ROUTER_PREDICTED_TTL_SECS),
		trackOutputBlocks: read.flag(ENV.DYN_ROUTER_TRACK_OUTPUT_BLOCKS, defaults.trackOutputBlocks),
		replicaSync: read.flag(ENV.DYN_ROUTER_REPLICA_SYNC, defaults.replicaSync),
		useRemoteIndexer: read.flag(ENV.DYN_USE_REMOTE_INDEXER, defaults.useRemoteIndexer),
		serveIndexer: read.flag(ENV.DYN_SERVE_INDEXER, defaults.serveIndexer),
		profile: PolicyProfile.single(
			read.choice(ENV.DYN_ROUTER_QUEUE_POLICY, ["fcfs", "wspt"], "fcfs"),
			optionalNumber(read, ENV.DYN_ROUTER_QUEUE_THRESHOLD, MOST),
		),
		queueDeadlineMs: defaults.queueDeadlineMs,
		cacheWaitMs: read.number(ENV.DYN_ROUTER_CACHE_WAIT_MS, defaults.cacheWaitMs, 0, 60_000),
	};
	if (read.flag(ENV.DYN_ROUTER_LOAD_AWARE, false)) return byLoadAlone(options);
	if (options.useRemoteIndexer && options.serveIndexer) {
		throw new DynamoError(
			"InvalidArgument",
			`${ENV.DYN_SERVE_INDEXER} and ${ENV.DYN_USE_REMOTE_INDEXER} are mutually exclusive: a process either has an index or asks one`,
		);
	}
	return options;
}

/** Dynamo's preset "load aware": what workers have cached is not asked. */
function byLoadAlone(options: KvRouterOptions): KvRouterOptions {
	return {
		...options,
		weights: { ...options.weights, overlapScoreCredit: 0 },
		useKvEvents: false,
		useRemoteIndexer: false,
		serveIndexer: false,
		assumeKvReuse: false,
		trackActiveBlocks: true,
		trackPrefillTokens: true,
	};
}
