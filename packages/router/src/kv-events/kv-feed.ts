// SPDX-License-Identifier: Apache-2.0
// Feeds an index with what the workers of an endpoint tell of their caches, and makes a noise when they tell nothing.
import { ENV, type EndpointId, type RouterEvent, type WorkerRank } from "@dynamo-ts/protocols/internal";
import type { DistributedRuntime, Logger } from "@dynamo-ts/runtime";
import type { RadixTree } from "../kv/radix-tree.js";
import type { WorkerSlots } from "../kv/worker-slots.js";
import { type KvEventCounts, type KvEventSink, KvEventSubscriber, type KvIngressStep } from "./kv-event-subscriber.js";

/** A worker is asked for everything at most so often because its events did not fit, milliseconds. */
const RESYNC_PAUSE_MS = 10_000;

/** Workers that do not say in this time what they hold are not waited for, milliseconds. */
const FIRST_ANSWERS_MS = 2000;

/** What became of an event at the index. */
export type KvEventStatus = "ok" | "parent_block_not_found" | "unsupported_residency_domain";

/** What is seen of a feed from outside. */
export interface KvFeedState {
	/** Numbers since the start; undefined before {@link KvFeed.open}. */
	readonly counts: Readonly<KvEventCounts> | undefined;
	/** Sources of events that were found. */
	readonly sources: readonly { readonly worker: WorkerRank; readonly inSync: boolean }[];
	/** The router lives by events. */
	readonly expected: boolean;
	/** Events are expected, a prompt was sent a while ago, and none has come. */
	readonly missing: boolean;
}

export class KvFeed {
	/** Told each event, what became of it, and whether the worker stored what it had already. */
	onEvent: ((type: RouterEvent["data"]["type"], status: KvEventStatus, duplicate: boolean) => void) | undefined;
	/** Told what becomes of the sources of events. */
	onIngress: ((step: KvIngressStep) => void) | undefined;
	readonly #tree: RadixTree;
	readonly #slots: WorkerSlots;
	readonly #deadlineMs: number;
	#subscriber: KvEventSubscriber | undefined;
	#log: Logger | undefined;
	#deadline: NodeJS.Timeout | undefined;
	#overdue = false;
	#expected = false;
	readonly #resyncedAt = new Map<number, number>();
	#onAnswer: (() => void) | undefined;
	#closed = false;

	/** @param deadlineMs no event so long after the first prompt is an error, milliseconds. */
	constructor(tree: RadixTree, slots: WorkerSlots, deadlineMs: number) {
		this.#tree = tree;
		this.#slots = slots;
		this.#deadlineMs = deadlineMs;
	}

	/**
	 * Begins to listen. Resolves when the workers that are there have told what they hold, or after two seconds.
	 * @param published the workers' card says that they publish events.
	 * @throws DynamoError `Unavailable` when the event plane or discovery cannot be used; may be called again then.
	 */
	async open(runtime: DistributedRuntime, endpoint: EndpointId, published: boolean): Promise<void> {
		if (this.#subscriber !== undefined || this.#closed) return;
		this.#expected = true;
		this.#log ??= runtime.log.child("dynamo_llm::kv_router");
		if (!published) {
			this.#overdue = true;
			this.#log.warn(`The workers' card says that they publish no KV events: requests go by load alone. ${cure()}`, {
				component: endpoint.component,
				endpoint: endpoint.name,
			});
			return;
		}
		const subscriber = await KvEventSubscriber.open(runtime, endpoint, this.#sink);
		if (this.#closed) {
			await subscriber.close();
			return;
		}
		this.#subscriber = subscriber;
		await this.#firstAnswers(subscriber);
	}

	async close(): Promise<void> {
		this.#closed = true;
		clearTimeout(this.#deadline);
		this.#onAnswer?.();
		try {
			await this.#subscriber?.close();
		} catch (error) {
			this.#log?.warn("The subscription to KV events could not be closed", { error });
		}
	}

	state(): KvFeedState {
		const counts = this.#subscriber?.counts;
		return {
			counts,
			expected: this.#expected,
			sources: this.#subscriber?.workers() ?? [],
			missing: this.#overdue && (counts?.applied ?? 0) === 0,
		};
	}

	/** A prompt with full blocks was sent: routing by cache that hears of no cache now must not go unnoticed. */
	expectEvents(): void {
		const subscriber = this.#subscriber;
		if (subscriber === undefined || this.#deadline !== undefined) return;
		this.#deadline = setTimeout(() => {
			this.#overdue = true;
			if (this.#closed || subscriber.counts.applied > 0) return;
			this.#log?.error(
				`No KV event came within ${this.#deadlineMs / 1000} s of a prompt: requests go by load alone. ${cure()}`,
				{ sources: subscriber.workers().length, malformed: subscriber.counts.malformed },
			);
		}, this.#deadlineMs);
		this.#deadline.unref();
	}

	/** A router that is younger than its workers should not choose before it has heard what they hold. */
	#firstAnswers(subscriber: KvEventSubscriber): Promise<void> {
		return new Promise((resolve) => {
			const finish = (): void => {
				clearTimeout(timer);
				this.#onAnswer = undefined;
				resolve();
			};
			const timer = setTimeout(finish, FIRST_ANSWERS_MS);
			this.#onAnswer = () => {
				if (this.#closed || subscriber.workers().every(({ inSync }) => inSync)) finish();
			};
			this.#onAnswer();
		});
	}

	readonly #sink: KvEventSink = {
		onIngress: (step) => this.onIngress?.(step),
		onReset: (worker) => {
			this.#forget(worker);
			// What the worker holds follows in the same turn.
			if (this.#onAnswer !== undefined) setImmediate(() => this.#onAnswer?.());
		},
		onWorkerGone: (worker) => {
			this.#forget(worker);
			// The slot may be another worker's next.
			const slot = this.#slots.find(worker.workerId, worker.dpRank);
			if (slot !== undefined) this.#resyncedAt.delete(slot);
		},
		onEvent: (event) => {
			const before = this.#tree.duplicates;
			const status = this.#apply(event);
			this.onEvent?.(event.data.type, status, this.#tree.duplicates > before);
		},
	};

	#forget({ workerId, dpRank }: WorkerRank): void {
		const slot = this.#slots.find(workerId, dpRank);
		if (slot !== undefined) this.#tree.clear(slot);
	}

	#apply(event: RouterEvent): KvEventStatus {
		// A cache that outlives its worker is not the worker's to lose.
		if (event.residencyDomain === "cache_owner") return "unsupported_residency_domain";
		const { workerId, dpRank } = event;
		const slot = this.#slots.obtain(workerId, dpRank);
		if (this.#tree.apply(slot, event.storageTier, event.data)) return "ok";
		const now = performance.now();
		if (now - (this.#resyncedAt.get(slot) ?? Number.NEGATIVE_INFINITY) >= RESYNC_PAUSE_MS) {
			this.#resyncedAt.set(slot, now);
			this.#log?.warn("A worker's KV event names a parent block that is not known; it is asked for all blocks", {
				worker_id: workerId,
				dp_rank: dpRank,
			});
			this.#subscriber?.resync({ workerId, dpRank });
		}
		return "parent_block_not_found";
	}
}

function cure(): string {
	return (
		`Give all processes the same event plane (${ENV.DYN_EVENT_PLANE}), let the workers publish KV events, ` +
		`or route by assumption: --no-router-kv-events (${ENV.DYN_ROUTER_USE_KV_EVENTS}=false)`
	);
}
