// SPDX-License-Identifier: Apache-2.0
import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { cardOfRouting, routingOfCard } from "./card-routing.js";
import { DEFAULT_KV_ROUTER_OPTIONS } from "./kv-options.js";

/** As a worker of Dynamo 1.6.1 put it into its card. */
const RECORDED = JSON.parse(
	readFileSync(new URL("../fixtures/card-router-config.json", import.meta.url), "utf8"),
) as Record<"kv" | "round_robin", Record<string, unknown>>;

describe("router_config of a model card", () => {
	test("recorded ones: mode, limits, sessions and weights", () => {
		const { profile: _profile, weights, ...kv } = routingOfCard(RECORDED.kv).kv;
		const { profile: _other, weights: usual, ...defaults } = DEFAULT_KV_ROUTER_OPTIONS;
		expect(kv).toEqual({ ...defaults, temperature: 0.25 });
		expect(weights).toEqual({ ...usual, overlapScoreCredit: 0.5 });
		expect(routingOfCard(RECORDED.kv)).toMatchObject({
			mode: "kv",
			busy: { activeDecodeBlocks: 0.7, activePrefillTokens: undefined },
			sessionAffinity: { ttlMs: 60_000, mode: "hard" },
			conditionalDisagg: undefined,
		});
		expect(routingOfCard(RECORDED.round_robin).mode).toBe("round-robin");
	});

	test("what a worker writes is what Dynamo's writes with the same flags, and is read as it was meant", () => {
		const wished = routingOfCard(RECORDED.kv);
		expect(cardOfRouting(wished)).toEqual(RECORDED.kv);
		expect(Object.keys(cardOfRouting(wished).kv_router_config as object)).toEqual(
			Object.keys(RECORDED.kv.kv_router_config as object),
		);
		const other = routingOfCard({
			router_mode: "least_loaded",
			kv_router_config: {
				decode_active_request_weight: 2,
				router_approximate_cache_policy: "lru",
				router_predicted_ttl_secs: 2.5,
				router_queue_threshold: 0.5,
				router_queue_policy: "wspt",
			},
			load_threshold_config: { active_prefill_tokens_threshold: 7, active_prefill_tokens_threshold_frac: 0.5 },
		});
		expect(routingOfCard(cardOfRouting(other))).toEqual(other);
	});

	test("all settings of the mode kv arrive", () => {
		const { kv, conditionalDisagg } = routingOfCard({
			router_mode: "k_v",
			kv_router_config: {
				overlap_score_weight: 3,
				use_kv_events: false,
				router_ttl_secs: 1.5,
				router_approximate_cache_policy: "lru",
				router_predicted_ttl_secs: 2,
				router_track_active_blocks: false,
				router_track_prefill_tokens: false,
				router_track_output_blocks: true,
				router_assume_kv_reuse: false,
				router_replica_sync: true,
				router_queue_threshold: 0.5,
				router_queue_policy: "wspt",
				serve_indexer: true,
				conditional_disagg_enabled: true,
				conditional_disagg_policy: "isl_or_load",
				conditional_disagg_prefill_busy_threshold: 0.25,
				a_later_setting: {},
			},
		});
		expect(kv).toMatchObject({
			weights: { prefillLoadScale: 3 },
			useKvEvents: false,
			ttlMs: 1500,
			approximateCachePolicy: "lru",
			predictedTtlMs: 2000,
			trackActiveBlocks: false,
			trackPrefillTokens: false,
			trackOutputBlocks: true,
			assumeKvReuse: false,
			replicaSync: true,
			serveIndexer: true,
		});
		expect(kv.profile.classes).toMatchObject([{ order: "wspt", prefillBusyThresholdFrac: 0.5 }]);
		expect(conditionalDisagg).toMatchObject({ policy: "isl_or_load", prefill_busy_threshold: 0.25 });
	});

	test.each([
		[[], /must be an object/],
		[{}, /missing field `router_mode`/],
		[{ router_mode: "toString" }, /router_mode must be one of .*k_v.*got "toString"/],
		[{ router_mode: "random", kv_router_config: { router_temperature: -1 } }, /router_temperature must be a number/],
		[{ router_mode: "random", kv_router_config: { use_kv_events: 1 } }, /use_kv_events must be a boolean/],
		[{ router_mode: "random", load_threshold_config: { active_decode_blocks_threshold: 2 } }, /from 0 to 1/],
		[{ router_mode: "random", session_affinity_mode: "weak" }, /session_affinity_mode must be one of hard, soft/],
		[{ router_mode: "k_v", kv_router_config: { use_remote_indexer: true, serve_indexer: true } }, /mutually exclusive/],
	])("%j is refused with the member's name", (config, message) => {
		expect(() => routingOfCard(config)).toThrow(message);
	});
});
