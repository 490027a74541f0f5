// SPDX-License-Identifier: Apache-2.0
// Whatever became of requests: once none is under way, each gauge of work under way says 0 in every process.
import type { Child } from "./child-process.js";
import { type PromFamily, type PromPage, type PromSample, parsePrometheus } from "./prom-parse.js";
import { http } from "./sse-client.js";

/** Gauges that do not tell of requests under way. Every other one must be 0 when there are none. */
const STANDING: readonly RegExp[] = [
	// The process itself.
	/^(process|nodejs)_|^python_info$|_uptime_seconds$/,
	// Counts for good.
	/^dynamo_frontend_disconnected_clients$/,
	// What a model and its workers are.
	/^dynamo_frontend_model_(context_length|kv_cache_block_size|max_num_batched_tokens|max_num_seqs|migration_limit|ready|total_kv_blocks)$/,
	/^num_request_max$|_info$|_created$|_total_blocks$|_model_load_seconds$|^dynamo_work_handler_(pool|queue)_capacity$/,
	// Who is there.
	/_router_(worker_registered|kv_event_source_mismatch_workers|kv_events_missing|\w+_ingress_sources|approximate_cache_\w+_policy)$/,
	// What was seen last.
	/^dynamo_frontend_worker_last_/,
	// What is in a cache for prompts to come, and how often it was of use.
	/_cache_hit_rate$|_engine_cached_blocks$|_router_approximate_lru_leases$/,
];

/** Families that must be at 0 while nothing is under way. */
export function gaugesOfWork(page: PromPage): PromFamily[] {
	return [...page.families.values()].filter(
		({ name, type }) => type === "gauge" && !STANDING.some((standing) => standing.test(name)),
	);
}

/** Series of work under way that are not at 0. */
export function gaugesUp(page: PromPage): PromSample[] {
	return gaugesOfWork(page).flatMap(({ samples }) => samples.filter(({ value }) => value !== 0));
}

/** A process with a page of metrics. */
export interface WatchedProcess {
	/** For messages. */
	readonly name: string;
	readonly child: Child;
	/** Base address of what serves its `/metrics`. */
	readonly url: string;
}

/** Looks at the gauges of several processes. */
export class GaugeWatch {
	/** Those that run; others can join and leave. */
	readonly processes: WatchedProcess[] = [];
	readonly #known = new Set<string>();
	readonly #seenUp = new Set<string>();

	/** Families that were at 0 whenever somebody looked: a check of those has checked nothing. */
	get neverUp(): string[] {
		return [...this.#known].filter((name) => !this.#seenUp.has(name)).sort();
	}

	/** Reads all pages. @returns what is up, for messages. */
	async look(): Promise<string[]> {
		const lists = await Promise.all(
			this.processes.map(async ({ name, url, child }) => {
				if (child.ended !== undefined) return [];
				const page = parsePrometheus((await http(`${url}/metrics`)).body);
				const up = gaugesUp(page);
				for (const family of gaugesOfWork(page)) this.#known.add(family.name);
				for (const sample of up) this.#seenUp.add(sample.name);
				return up.map((sample) => `${name}: ${sample.name}${JSON.stringify(sample.labels)} ${sample.value}`);
			}),
		);
		return lists.flat();
	}

	/**
	 * Resolves once nothing is up anywhere.
	 * @throws Error naming what is up after `timeoutMs`.
	 */
	async settled(timeoutMs = 15_000): Promise<void> {
		const deadline = Date.now() + timeoutMs;
		for (let pauseMs = 10; ; pauseMs = Math.min(2 * pauseMs, 200)) {
			const up = await this.look();
			if (up.length === 0) return;
			if (Date.now() > deadline) throw new Error(`still up:\n${up.join("\n")}`);
			await new Promise((resolve) => setTimeout(resolve, pauseMs));
		}
	}
}
