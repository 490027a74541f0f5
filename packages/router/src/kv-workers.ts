// SPDX-License-Identifier: Apache-2.0
import type { ModelDeploymentCard } from "@dynamo-ts/protocols/internal";
import type { KvWorkers } from "./kv-options.js";

/** What a model card says to the policy "kv". */
export function kvWorkersOf(card: ModelDeploymentCard): KvWorkers {
	const { display_name, kv_cache_block_size, runtime_config, worker_type } = card;
	return {
		model: display_name,
		blockSize: kv_cache_block_size,
		firstRank: runtime_config?.data_parallel_start_rank ?? 0,
		rankCount: Math.max(1, runtime_config?.data_parallel_size ?? 1),
		publishEvents: runtime_config?.kv_event_publishing_enabled !== false,
		decodeOnly: worker_type === "decode",
		eagle: runtime_config?.enable_eagle === true,
		totalKvBlocks: runtime_config?.total_kv_blocks ?? undefined,
		maxNumBatchedTokens: runtime_config?.max_num_batched_tokens ?? undefined,
	};
}
