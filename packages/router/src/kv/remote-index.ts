// SPDX-License-Identifier: Apache-2.0
// The index of another process: which workers hold how much of a prompt is asked over the request plane, at endpoints of
// the workers' component (`--use-remote-indexer`; the other side is `--serve-indexer`).
import { randomUUID } from "node:crypto";
import {
	type DynamoError,
	type EndpointId,
	type EndpointRecord,
	indexerQueryToWire,
	KV_INDEXER_QUERY_ENDPOINT,
	KV_INDEXER_RECORD_ENDPOINT,
	recordedFromWire,
	routingDecisionToWire,
	type TieredScores,
	tieredScoresFromWire,
	type WorkerRank,
} from "@dynamo-ts/protocols/internal";
import type { DistributedRuntime, EndpointClient, Logger } from "@dynamo-ts/runtime";
import type { PrefixMatches } from "./radix-tree.js";
import type { WorkerSlots } from "./worker-slots.js";

/** A choice is not held up for longer by an index that does not answer, milliseconds. */
const ANSWER_MS = 2000;
/** Failures are logged at most so often, milliseconds. */
const LOG_PAUSE_MS = 10_000;
/** Decisions that the index has not confirmed yet; further ones are dropped, as failures. */
const MOST_UNCONFIRMED = 1000;

/** Nobody holds anything, as far as is known. */
export const NO_SCORES: TieredScores = { device: [], lowerTiers: [] };

export type RemoteIndexFailure = "query" | "write";

export class RemoteIndex {
	/** Told each question, or decision, that the index did not take. */
	onFailure: ((failure: RemoteIndexFailure) => void) | undefined;
	readonly #model: string;
	readonly #learns: boolean;
	#component = "";
	#queries: EndpointClient | undefined;
	#records: EndpointClient | undefined;
	#log: Logger | undefined;
	#loggedAt = Number.NEGATIVE_INFINITY;
	#turn = 0;
	#unconfirmed = 0;
	#opening: Promise<void> | undefined;
	#closed = false;

	/**
	 * @param model whose index is asked, by the name on the workers' card.
	 * @param learns the index lives on what routers decide, and is told; false: on workers' events.
	 */
	constructor(model: string, learns: boolean) {
		this.#model = model;
		this.#learns = learns;
	}

	/**
	 * Follows the processes that serve an index of these workers.
	 * @throws DynamoError `Unavailable` when discovery cannot be used; may be called again then.
	 */
	open(runtime: DistributedRuntime, workers: EndpointId): Promise<void> {
		this.#opening ??= this.#open(runtime, workers).catch((error: unknown) => {
			this.#opening = undefined;
			throw error;
		});
		return this.#opening;
	}

	async #open(runtime: DistributedRuntime, workers: EndpointId): Promise<void> {
		this.#log ??= runtime.log.child("dynamo_llm::kv_router");
		this.#component = `${workers.namespace}.${workers.component}`;
		const component = runtime.namespace(workers.namespace).component(workers.component);
		this.#queries ??= await component.endpoint(KV_INDEXER_QUERY_ENDPOINT).client();
		this.#records ??= await component.endpoint(KV_INDEXER_RECORD_ENDPOINT).client();
		if (this.#closed) this.#closeClients();
	}

	close(): void {
		this.#closed = true;
		this.#closeClients();
	}

	#closeClients(): void {
		this.#queries?.close();
		this.#records?.close();
	}

	/** What the workers hold of a prompt; nothing where the index does not tell within two seconds. Never rejects. */
	async find(tokensHashes: readonly bigint[]): Promise<TieredScores> {
		try {
			const target = this.#next(this.#queries);
			const question = { modelName: this.#model, tokensHashes, deviceOnly: false };
			return tieredScoresFromWire(await this.#ask(this.#queries, target, indexerQueryToWire(question)));
		} catch (error) {
			this.#failed("query", error);
			return NO_SCORES;
		}
	}

	/** Tells the index where a prompt went; does nothing where it lives on events. Never throws. */
	record(worker: WorkerRank, tokensHashes: readonly bigint[], sequenceHashes: readonly bigint[]): void {
		if (!this.#learns || tokensHashes.length === 0) return;
		const decision = { modelName: this.#model, worker, tokensHashes, sequenceHashes };
		this.#tell(routingDecisionToWire(decision)).catch((error: unknown) => this.#failed("write", error));
	}

	async #tell(payload: Record<string, unknown>): Promise<void> {
		if (this.#unconfirmed >= MOST_UNCONFIRMED) throw new Error("the index is behind with earlier decisions");
		this.#unconfirmed++;
		try {
			recordedFromWire(await this.#ask(this.#records, this.#next(this.#records), payload));
		} finally {
			this.#unconfirmed--;
		}
	}

	/** @throws Error when there is none, or those that are there do not fit together. */
	#next(client: EndpointClient | undefined): EndpointRecord {
		const instances = client?.available() ?? [];
		const instance = instances[this.#turn++ % instances.length];
		if (instance === undefined) {
			throw new Error(
				`no process serves an index of ${this.#component}: start a router or frontend with --serve-indexer` +
					`${this.#learns ? " --no-router-kv-events" : ""}`,
			);
		}
		const queries = this.#queries?.instances().length ?? 0;
		const records = this.#records?.instances().length ?? 0;
		if (!this.#learns && records > 0) {
			throw new Error(
				`an index of ${this.#component} lives on routers' decisions, this router on workers' events: ` +
					"give both --router-kv-events, or both --no-router-kv-events",
			);
		}
		if (this.#learns && (queries !== 1 || records !== 1)) {
			throw new Error(
				`an index that lives on routers' decisions must be one process; ${queries} answer for ${this.#component}, ${records} listen`,
			);
		}
		return instance;
	}

	#ask(client: EndpointClient | undefined, target: EndpointRecord, payload: Record<string, unknown>): Promise<unknown> {
		return new Promise((resolve, reject) => {
			client?.send(
				target,
				{ id: randomUUID(), payload },
				{
					onItem: (item: unknown) => resolve(item),
					onEnd: () => reject(new Error("the index gave no answer")),
					onError: (error: DynamoError) => reject(error),
				},
				{ ackTimeoutMs: ANSWER_MS, firstResponseTimeoutMs: ANSWER_MS, idleTimeoutMs: ANSWER_MS },
			);
		});
	}

	#failed(failure: RemoteIndexFailure, error: unknown): void {
		if (this.#closed) return;
		this.onFailure?.(failure);
		const now = performance.now();
		if (now - this.#loggedAt < LOG_PAUSE_MS) return;
		this.#loggedAt = now;
		const what = failure === "query" ? "requests go by load alone" : "it will not know of all prompts";
		this.#log?.warn(`The remote index of KV blocks does not answer; ${what}`, {
			model: this.#model,
			error: (error as Error).message,
		});
	}
}

/** Scores as a search of an own index would give them. Ranks without a slot are nobody that could be chosen. */
export function matchesOf(scores: TieredScores, slots: WorkerSlots): PrefixMatches {
	const { capacity } = slots;
	const counts = (): Uint32Array => new Uint32Array(capacity);
	const found = { device: counts(), hostPinned: counts(), disk: counts(), external: counts() };
	const matched = new Set<number>();
	const fill = (into: Uint32Array, hits: TieredScores["device"]): void => {
		for (const { worker, blocks } of hits) {
			const slot = slots.find(worker.workerId, worker.dpRank);
			if (slot === undefined) continue;
			into[slot] = blocks;
			matched.add(slot);
		}
	};
	fill(found.device, scores.device);
	for (const { tier, hits } of scores.lowerTiers) {
		if (tier !== "device") fill(tier === "host_pinned" ? found.hostPinned : found[tier], hits);
	}
	return { slots: Int32Array.from(matched), count: matched.size, ...found };
}
