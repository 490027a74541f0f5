// SPDX-License-Identifier: Apache-2.0
// Routers of the same workers tell each other what they have given them (topic `active_sequences_events`), so that each
// sees the load of all. Best effort: what is lost runs out with the time limit of requests that never end.
import {
	ACTIVE_SEQUENCES_TOPIC,
	type ActiveSequenceChange,
	type ActiveSequenceEvent,
	decodeActiveSequences,
	type EndpointId,
	type EventEnvelope,
	encodeActiveSequences,
	type WorkerRank,
} from "@dynamo-ts/protocols/internal";
import type { DistributedRuntime, EventPublisher, EventSubscription, Logger } from "@dynamo-ts/runtime";
import { rateLimited } from "@dynamo-ts/runtime/internal";

/** Changes within one turn of the event loop travel together, up to so many. */
const MAX_BATCH = 1024;
/** Requests of other routers that are remembered; more than they can have under way. */
const MAX_REMOTE = 200_000;

/** What other routers' requests do here. */
export interface ReplicaSink {
	add(key: string, worker: WorkerRank, change: Extract<ActiveSequenceChange, { type: "add" }>): void;
	prefillDone(key: string): void;
	free(key: string): void;
	/** False for a request that ran out by itself. */
	has(key: string): boolean;
}

/** Numbers since the start. */
export interface ReplicaCounts {
	/** Messages of others that were applied, and the events in them. */
	readonly batches: number;
	readonly events: number;
	/** Messages whose payload could not be read. */
	readonly unreadable: number;
	/** Messages that could not be read as such. */
	readonly malformed: number;
	/** Messages missing by their sequence numbers. */
	readonly lost: number;
	/** Publishers that are listened to, this router included. */
	readonly publishers: number;
}

/** A request of another router. */
interface Remote {
	readonly key: string;
	readonly routerId: bigint;
	readonly publisherId: bigint;
	readonly workerId: bigint;
}

export class ReplicaSync {
	readonly #sink: ReplicaSink;
	readonly #routerId: bigint;
	readonly #log: Pick<Logger, "warn">;
	/** By the request's id: workers know that, and not which router it is from. */
	readonly #remote = new Map<string, Remote[]>();
	#count = 0;
	#publisher: EventPublisher | undefined;
	#subscription: EventSubscription | undefined;
	#pending: ActiveSequenceEvent[] = [];
	#scheduled: NodeJS.Immediate | undefined;
	#applied = 0;
	#batches = 0;
	#unreadable = 0;

	private constructor(runtime: DistributedRuntime, sink: ReplicaSink) {
		this.#sink = sink;
		this.#routerId = runtime.instanceId;
		this.#log = rateLimited(runtime.log.child("dynamo_llm::kv_router::sequence"));
	}

	/** @throws DynamoError `Unavailable` when the event plane or discovery cannot be used. */
	static async open(runtime: DistributedRuntime, endpoint: EndpointId, sink: ReplicaSink): Promise<ReplicaSync> {
		const sync = new ReplicaSync(runtime, sink);
		const scope = { kind: "endpoint", endpoint } as const;
		sync.#subscription = await runtime.events.subscribe(scope, ACTIVE_SEQUENCES_TOPIC, {
			onEvent: (envelope) => sync.#onEnvelope(envelope),
			onPublisherGone: (publisherId) => sync.#forgetPublisher(publisherId),
		});
		try {
			sync.#publisher = await runtime.events.createPublisher(scope, ACTIVE_SEQUENCES_TOPIC);
		} catch (error) {
			await sync.#subscription.close();
			throw error;
		}
		return sync;
	}

	/** Requests of other routers under way, as far as they told. */
	get remote(): number {
		return this.#count;
	}

	counts(): ReplicaCounts {
		const { malformed = 0, lost = 0, publishers = 0 } = this.#subscription ?? {};
		const [batches, events, unreadable] = [this.#batches, this.#applied, this.#unreadable];
		return { batches, events, unreadable, malformed, lost, publishers };
	}

	/** @param requestId as workers know it. */
	tell(requestId: string, worker: WorkerRank, change: ActiveSequenceChange, loraName?: string): void {
		this.#pending.push({ requestId, worker, change, routerId: this.#routerId, loraName });
		if (this.#pending.length >= MAX_BATCH) this.#flush();
		else this.#scheduled ??= setImmediate(() => this.#flush());
	}

	/** Idempotent. */
	async close(): Promise<void> {
		this.#flush();
		try {
			await Promise.all([this.#publisher?.close(), this.#subscription?.close()]);
		} catch (error) {
			this.#log.warn("The events of replica synchronisation could not be closed", { error });
		}
		for (const list of this.#remote.values()) for (const { key } of list) this.#sink.free(key);
		this.#remote.clear();
		this.#count = 0;
	}

	#flush(): void {
		if (this.#scheduled !== undefined) clearImmediate(this.#scheduled);
		this.#scheduled = undefined;
		const events = this.#pending;
		if (events.length === 0 || this.#publisher === undefined) return;
		this.#pending = [];
		const form = this.#publisher.transport === "nats" ? "bare" : "batch";
		for (const payload of encodeActiveSequences(events, form)) this.#publisher.publish(payload);
	}

	#onEnvelope({ payload, publisherId }: EventEnvelope): void {
		try {
			const before = this.#applied;
			for (const event of decodeActiveSequences(payload)) {
				if (event.routerId !== this.#routerId) this.#apply(event, publisherId);
			}
			if (this.#applied > before) this.#batches++;
		} catch (error) {
			this.#unreadable++;
			this.#log.warn("What another router told of its requests could not be read", { error });
		}
	}

	#apply({ requestId, worker, change, routerId }: ActiveSequenceEvent, publisherId: bigint): void {
		this.#applied++;
		if (change.type === "add") {
			const key = `${routerId}/${requestId}`;
			this.#remove(requestId, (known) => known.key === key);
			if (this.#count >= MAX_REMOTE) this.#sweep();
			if (this.#count >= MAX_REMOTE) return;
			this.#sink.add(key, worker, change);
			const list = this.#remote.get(requestId);
			const one = { key, routerId, publisherId, workerId: worker.workerId };
			if (list === undefined) this.#remote.set(requestId, [one]);
			else list.push(one);
			this.#count++;
			return;
		}
		// A worker speaks of whatever router's request it has; its own id stands for the router's then.
		const own = (known: Remote): boolean =>
			known.workerId === worker.workerId && (known.routerId === routerId || routerId === worker.workerId);
		if (change.type === "free") this.#remove(requestId, own);
		else for (const known of this.#remote.get(requestId) ?? []) if (own(known)) this.#sink.prefillDone(known.key);
	}

	#remove(requestId: string, which: (known: Remote) => boolean): void {
		const list = this.#remote.get(requestId);
		if (list === undefined) return;
		const kept = list.filter((known) => !which(known));
		for (const known of list) if (which(known)) this.#sink.free(known.key);
		this.#count -= list.length - kept.length;
		if (kept.length === 0) this.#remote.delete(requestId);
		else this.#remote.set(requestId, kept);
	}

	/** A router that is gone ends no request any more. */
	#forgetPublisher(publisherId: bigint): void {
		for (const requestId of [...this.#remote.keys()]) {
			this.#remove(requestId, (known) => known.publisherId === publisherId);
		}
	}

	/** Drops those that ran out. */
	#sweep(): void {
		for (const requestId of [...this.#remote.keys()]) {
			this.#remove(requestId, (known) => !this.#sink.has(known.key));
		}
	}
}
