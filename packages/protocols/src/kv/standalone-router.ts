// SPDX-License-Identifier: Apache-2.0
// What a router that is a process of its own is asked beside `generate`: which worker it would take, and how much of a
// prompt each worker holds. Recorded from Dynamo 1.6.1's `dynamo.router`.

import type { WorkerRank } from "../events/load-events.js";
import { FieldReader, isU32 } from "../field-reader.js";
import { isJsonObject, isU64, normaliseId } from "../json.js";

/** The component that it registers as, in its namespace. */
export const ROUTER_COMPONENT = "router";
export const BEST_WORKER_ENDPOINT = "best_worker_id";
export const OVERLAP_SCORES_ENDPOINT = "get_overlap_scores";

/** A prompt, and what else than its tokens makes cached blocks differ. */
export interface OverlapQuestion {
	readonly tokenIds: readonly number[];
	readonly loraName: string | undefined;
	readonly cacheSalt: string | undefined;
	/** Hashes of what is in each block beside tokens; undefined for a block without, absent: none has any. */
	readonly mmHashes: readonly (readonly bigint[] | undefined)[] | undefined;
}

/** Blocks of a prompt at a worker: leading ones in device memory, and those that go on in the tiers below. */
export interface WorkerOverlap extends WorkerRank {
	readonly device: number;
	readonly hostPinned: number;
	readonly disk: number;
}

/**
 * Reads a list of token ids.
 * @throws DynamoError InvalidArgument for anything else.
 */
export function tokenIdsFromWire(value: unknown, name: string): readonly number[] {
	const reader = new FieldReader({}, name);
	if (!Array.isArray(value)) return reader.fail("must be an array of token ids");
	const wrong = value.findIndex((id) => !isU32(id));
	if (wrong >= 0) reader.fail(`token ${wrong} must be an unsigned 32-bit integer`);
	return value as number[];
}

/** @throws DynamoError InvalidArgument that names the member at fault. */
export function overlapQuestionFromWire(value: unknown): OverlapQuestion {
	const body = new FieldReader(value, "overlap scores");
	const infos = body.has("block_mm_infos") ? body.member("block_mm_infos") : undefined;
	if (infos !== undefined && !Array.isArray(infos)) body.fail("block_mm_infos must be an array");
	return {
		tokenIds: tokenIdsFromWire(body.member("token_ids"), "token_ids"),
		loraName: body.optionalString("lora_name"),
		cacheSalt: body.optionalString("cache_namespace"),
		mmHashes: (infos as unknown[] | undefined)?.map((info) => mmHashes(body, info)),
	};
}

function mmHashes(body: FieldReader, info: unknown): bigint[] | undefined {
	if (info === null || info === undefined) return undefined;
	const objects = isJsonObject(info) ? info.mm_objects : undefined;
	if (!Array.isArray(objects)) return body.fail("block_mm_infos needs an array mm_objects in each block");
	return objects.map((object: unknown) => {
		const hash = isJsonObject(object) ? object.mm_hash : undefined;
		return isU64(hash) ? normaliseId(hash) : body.fail("mm_hash must be an unsigned 64-bit integer");
	});
}

/**
 * The answer's `data`. The members that count blocks of a lower tier count those above it, too; the `extension`
 * members do not. There is no cache that workers share.
 */
export function overlapScoresToWire(
	blockSize: number,
	blocks: number,
	workers: readonly WorkerOverlap[],
): Record<string, unknown> {
	return {
		block_size: blockSize,
		num_blocks: blocks,
		workers: workers.map(({ workerId, dpRank, device, hostPinned, disk }) => ({
			worker_id: workerId,
			dp_rank: dpRank,
			device_blocks: device,
			host_pinned_blocks: device + hostPinned,
			disk_blocks: device + hostPinned + disk,
			host_pinned_extension_blocks: hostPinned,
			disk_extension_blocks: disk,
			shared_beyond_device_blocks: null,
		})),
		shared_cache: { enabled: false, total_hit_blocks: 0, ranges: [], error: null },
	};
}
