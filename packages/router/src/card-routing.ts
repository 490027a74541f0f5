// SPDX-License-Identifier: Apache-2.0
// How workers want to be routed to, as their model card says (`router_config`): in place of all that the frontend's own
// flags say, for these workers alone. Names and defaults of Dynamo 1.6.1.
import { FieldReader } from "@dynamo-ts/protocols/internal";
import type { BusyThresholds } from "./kv/eligibility.js";
import { DEFAULT_KV_ROUTER_OPTIONS, type KvRouterOptions } from "./kv-options.js";
import { PolicyProfile } from "./queue/policy-profile.js";
import type { RouterMode } from "./router.js";
import { SESSION_AFFINITY_MODES, type SessionAffinityOptions } from "./session-affinity.js";

/** Names of the modes on the wire. */
const MODES: Record<string, RouterMode> = {
	round_robin: "round-robin",
	random: "random",
	power_of_two_choices: "power-of-two",
	k_v: "kv",
	direct: "direct",
	least_loaded: "least-loaded",
	device_aware_weighted: "device-aware-weighted",
};

/** The five settings of conditional disaggregation, as its JSON configuration has them; null: not set. */
export type CardConditionalDisagg = Readonly<Record<string, string | number | null>>;

export interface CardRouting {
	readonly mode: RouterMode;
	readonly kv: KvRouterOptions;
	readonly busy: BusyThresholds;
	readonly sessionAffinity: SessionAffinityOptions | undefined;
	/** Undefined: every prompt goes to a prefill worker, where there are any. */
	readonly conditionalDisagg: CardConditionalDisagg | undefined;
}

/**
 * Reads a card's `router_config`. Members that are not known are ignored, absent ones have Dynamo's defaults.
 * @throws DynamoError `InvalidArgument` that names the member at fault.
 */
export function routingOfCard(config: unknown): CardRouting {
	const body = new FieldReader(config, "router_config");
	const name = body.string("router_mode");
	const mode = Object.hasOwn(MODES, name) ? MODES[name] : undefined;
	if (mode === undefined) body.fail(`router_mode must be one of ${Object.keys(MODES).join(", ")}, got "${name}"`);
	const limits = new Settings(body, "load_threshold_config");
	const own = new Settings(body);
	const ttl = own.number("session_affinity_ttl_secs");
	const affinityMode = body.optionalWord("session_affinity_mode", SESSION_AFFINITY_MODES) ?? "hard";
	const kv = new Settings(body, "kv_router_config");
	const options = kvOptions(kv);
	if (options.useRemoteIndexer && options.serveIndexer) {
		body.fail("use_remote_indexer and serve_indexer are mutually exclusive");
	}
	return {
		mode: mode as RouterMode,
		kv: options,
		busy: {
			activeDecodeBlocks: limits.number("active_decode_blocks_threshold", undefined, 1),
			activePrefillTokens: limits.number("active_prefill_tokens_threshold"),
			activePrefillTokensFrac: limits.number("active_prefill_tokens_threshold_frac"),
		},
		sessionAffinity: ttl === undefined || ttl === 0 ? undefined : { ttlMs: ttl * 1000, mode: affinityMode },
		conditionalDisagg: kv.flag("conditional_disagg_enabled", false) ? conditional(kv) : undefined,
	};
}

/**
 * What a worker with these settings writes into its card, member by member as Dynamo's worker with the same flags. The
 * other way round than {@link routingOfCard}.
 */
export function cardOfRouting({ mode, kv, busy, sessionAffinity }: Omit<CardRouting, "conditionalDisagg">): {
	readonly [member: string]: unknown;
} {
	const [name] = Object.entries(MODES).find(([, one]) => one === mode) ?? ["round_robin"];
	const [policy] = kv.profile.classes;
	const { weights } = kv;
	const set = (member: string, value: unknown): Record<string, unknown> =>
		value === undefined ? {} : { [member]: value };
	return {
		router_mode: name,
		kv_router_config: {
			overlap_score_credit: weights.overlapScoreCredit,
			overlap_score_credit_decay: weights.overlapScoreCreditDecay,
			prefill_load_scale: weights.prefillLoadScale,
			...set("decode_active_request_weight", weights.decodeActiveRequestWeight || undefined),
			host_cache_hit_weight: weights.hostCacheHitWeight,
			disk_cache_hit_weight: weights.diskCacheHitWeight,
			router_temperature: kv.temperature,
			use_kv_events: kv.useKvEvents,
			router_replica_sync: kv.replicaSync,
			router_track_active_blocks: kv.trackActiveBlocks,
			router_track_output_blocks: kv.trackOutputBlocks,
			router_assume_kv_reuse: kv.assumeKvReuse,
			router_track_prefill_tokens: kv.trackPrefillTokens,
			router_prefill_load_model: "none",
			router_ttl_secs: kv.ttlMs / 1000,
			...set("router_approximate_cache_policy", kv.approximateCachePolicy === "ttl" ? undefined : "lru"),
			router_queue_threshold: policy?.prefillBusyThresholdFrac ?? null,
			router_policy_config: null,
			router_event_threads: 4,
			skip_initial_worker_wait: false,
			router_queue_policy: policy?.order ?? "fcfs",
			use_remote_indexer: kv.useRemoteIndexer,
			serve_indexer: kv.serveIndexer,
			shared_cache_type: "none",
			router_predicted_ttl_secs: kv.predictedTtlMs === undefined ? null : kv.predictedTtlMs / 1000,
		},
		load_threshold_config: {
			...set("active_decode_blocks_threshold", busy.activeDecodeBlocks),
			...set("active_prefill_tokens_threshold", busy.activePrefillTokens),
			...set("active_prefill_tokens_threshold_frac", busy.activePrefillTokensFrac),
		},
		enforce_disagg: false,
		session_affinity_ttl_secs: sessionAffinity === undefined ? null : sessionAffinity.ttlMs / 1000,
		session_affinity_mode: sessionAffinity?.mode ?? "hard",
	};
}

function kvOptions(kv: Settings): KvRouterOptions {
	const defaults = DEFAULT_KV_ROUTER_OPTIONS;
	const { weights } = defaults;
	const predicted = kv.number("router_predicted_ttl_secs");
	// The older name of the prefill load's weight.
	const scale = kv.number("overlap_score_weight") ?? weights.prefillLoadScale;
	return {
		...defaults,
		weights: {
			overlapScoreCredit: kv.number("overlap_score_credit", weights.overlapScoreCredit),
			overlapScoreCreditDecay: kv.number("overlap_score_credit_decay", weights.overlapScoreCreditDecay),
			prefillLoadScale: kv.number("prefill_load_scale", scale),
			decodeActiveRequestWeight: kv.number("decode_active_request_weight", weights.decodeActiveRequestWeight),
			hostCacheHitWeight: kv.number("host_cache_hit_weight", weights.hostCacheHitWeight, 1),
			diskCacheHitWeight: kv.number("disk_cache_hit_weight", weights.diskCacheHitWeight, 1),
			sharedCacheMultiplier: weights.sharedCacheMultiplier,
		},
		temperature: kv.number("router_temperature", defaults.temperature),
		useKvEvents: kv.flag("use_kv_events", defaults.useKvEvents),
		ttlMs: kv.number("router_ttl_secs", defaults.ttlMs / 1000) * 1000,
		trackActiveBlocks: kv.flag("router_track_active_blocks", defaults.trackActiveBlocks),
		trackPrefillTokens: kv.flag("router_track_prefill_tokens", defaults.trackPrefillTokens),
		trackOutputBlocks: kv.flag("router_track_output_blocks", defaults.trackOutputBlocks),
		assumeKvReuse: kv.flag("router_assume_kv_reuse", defaults.assumeKvReuse),
		approximateCachePolicy: kv.word("router_approximate_cache_policy", ["ttl", "lru"], "ttl"),
		predictedTtlMs: predicted === undefined ? undefined : predicted * 1000,
		replicaSync: kv.flag("router_replica_sync", defaults.replicaSync),
		useRemoteIndexer: kv.flag("use_remote_indexer", defaults.useRemoteIndexer),
		serveIndexer: kv.flag("serve_indexer", defaults.serveIndexer),
		profile: PolicyProfile.single(
			kv.word("router_queue_policy", ["fcfs", "wspt"], "fcfs"),
			kv.number("router_queue_threshold"),
		),
	};
}

function conditional(kv: Settings): CardConditionalDisagg {
	const number = (name: string): number | null => kv.number(`conditional_disagg_${name}`) ?? null;
	return {
		policy: kv.text("conditional_disagg_policy") ?? null,
		eff_isl_threshold: number("eff_isl_threshold"),
		eff_isl_ratio_threshold: number("eff_isl_ratio_threshold"),
		prefill_busy_threshold: number("prefill_busy_threshold"),
		decode_busy_threshold: number("decode_busy_threshold"),
	};
}

/** Members of a part of the configuration; any may be absent or null, and so may the part. */
class Settings {
	readonly #body: FieldReader;

	constructor(body: FieldReader, part?: string) {
		this.#body = part === undefined ? body : body.has(part) ? body.object(part) : new FieldReader({}, part);
	}

	number(name: string): number | undefined;
	number(name: string, otherwise: number, most?: number): number;
	number(name: string, otherwise: undefined, most: number): number | undefined;
	number(name: string, otherwise?: number, most = Number.MAX_SAFE_INTEGER): number | undefined {
		if (!this.#body.has(name)) return otherwise;
		const value = this.#body.member(name);
		const number = typeof value === "bigint" ? Number(value) : value;
		if (typeof number !== "number" || !(number >= 0 && number <= most)) {
			this.#body.fail(`${name} must be a number from 0${most === Number.MAX_SAFE_INTEGER ? " on" : ` to ${most}`}`);
		}
		return number;
	}

	flag(name: string, otherwise: boolean): boolean {
		return this.#body.has(name) ? this.#body.boolean(name) : otherwise;
	}

	word<const W extends string>(name: string, words: readonly W[], otherwise: W): W {
		return this.#body.optionalWord(name, words) ?? otherwise;
	}

	text(name: string): string | undefined {
		return this.#body.optionalString(name);
	}
}
