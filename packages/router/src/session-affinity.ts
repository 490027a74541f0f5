// SPDX-License-Identifier: Apache-2.0
// Requests of a session go to the worker that had the last one. Frontends tell each other which one that is.
import {
	DynamoError,
	decodeSessionAffinity,
	type EndpointId,
	type EventEnvelope,
	encodeSessionAffinity,
	SESSION_AFFINITY_TOPIC,
	type SessionAffinityEvent,
	type WorkerRank,
} from "@dynamo-ts/protocols/internal";
import type { DistributedRuntime, EventPublisher, EventSubscription, Logger } from "@dynamo-ts/runtime";
import { rateLimited } from "@dynamo-ts/runtime/internal";

/** hard: the session's worker or none, as long as it is there; soft: another one while it is too full. */
export const SESSION_AFFINITY_MODES = ["hard", "soft"] as const;
export type SessionAffinityMode = (typeof SESSION_AFFINITY_MODES)[number];

export interface SessionAffinityOptions {
	/** A session without requests for so long is forgotten, milliseconds. */
	readonly ttlMs: number;
	readonly mode: SessionAffinityMode;
}

/** Longest name of a session, bytes; longer ones are refused. */
export const MAX_SESSION_ID_BYTES = 1024;
/** Most sessions that are remembered. A new one takes the place of the one that is idle for longest. */
const MAX_SESSIONS = 100_000;

interface Binding extends WorkerRank {
	/** Orders bindings of the same session: the latest holds. */
	readonly sequence: bigint;
	readonly writerId: bigint;
	/** Requests under way here. */
	active: number;
	/** Milliseconds, on the clock of the constructor. */
	idleSince: number;
}

export class SessionAffinity {
	readonly options: SessionAffinityOptions;
	/** In the order of their last use. */
	readonly #bindings = new Map<string, Binding>();
	readonly #now: () => number;
	#writerId = 0n;
	#lastSequence = 0n;
	#publisher: EventPublisher | undefined;
	#subscription: EventSubscription | undefined;
	#isMember: (workerId: bigint) => boolean = () => true;
	#log: Pick<Logger, "warn"> | undefined;
	#closed = false;

	/** @param now milliseconds on a clock that does not jump. */
	constructor(options: SessionAffinityOptions, now: () => number = () => performance.now()) {
		this.options = options;
		this.#now = now;
	}

	/** Sessions that are remembered. */
	get size(): number {
		return this.#bindings.size;
	}

	/**
	 * Begins to tell other frontends, and to hear from them.
	 * @param isMember true for a worker that is known here: bindings to others are not taken over.
	 * @throws DynamoError `Unavailable` when the event plane or discovery cannot be used; may be called again then.
	 */
	async open(
		runtime: DistributedRuntime,
		endpoint: EndpointId,
		isMember: (workerId: bigint) => boolean,
	): Promise<void> {
		if (this.#subscription !== undefined || this.#closed) return;
		this.#log = rateLimited(runtime.log.child("dynamo_llm::session_affinity"));
		this.#writerId = runtime.instanceId;
		this.#isMember = isMember;
		const scope = { kind: "endpoint", endpoint } as const;
		this.#publisher ??= await runtime.events.createPublisher(scope, SESSION_AFFINITY_TOPIC);
		this.#subscription = await runtime.events.subscribe(scope, SESSION_AFFINITY_TOPIC, {
			onEvent: (envelope) => this.#onEnvelope(envelope),
		});
		if (this.#closed) await this.#free();
	}

	/** @throws DynamoError `InvalidArgument` for a name that is too long. */
	check(sessionId: string): void {
		if (Buffer.byteLength(sessionId) > MAX_SESSION_ID_BYTES) {
			throw new DynamoError("InvalidArgument", `the session id is longer than ${MAX_SESSION_ID_BYTES} bytes`);
		}
	}

	/** The worker that the session is bound to; undefined: any will do. */
	boundTo(sessionId: string): WorkerRank | undefined {
		const binding = this.#bindings.get(sessionId);
		if (binding === undefined) return undefined;
		if (!this.#isIdle(binding)) return binding;
		this.#bindings.delete(sessionId);
		return undefined;
	}

	/** A request of the session went to the worker: it is bound to it from now on. Followed by one {@link end}. */
	begin(sessionId: string, workerId: bigint, dpRank: number): void {
		const known = this.#bindings.get(sessionId);
		if (known !== undefined && known.workerId === workerId && known.dpRank === dpRank && !this.#isIdle(known)) {
			known.active++;
			this.#touch(sessionId, known);
			return;
		}
		const sequence = this.#nextSequence();
		const binding: Binding = {
			workerId,
			dpRank,
			sequence,
			writerId: this.#writerId,
			active: 0,
			idleSince: this.#now(),
		};
		// Requests that still run elsewhere end here, too.
		binding.active = (known?.active ?? 0) + 1;
		this.#touch(sessionId, binding);
	}

	/** A request of the session ended. */
	end(sessionId: string): void {
		const binding = this.#bindings.get(sessionId);
		if (binding === undefined) return;
		binding.active = Math.max(0, binding.active - 1);
		this.#touch(sessionId, binding);
	}

	/** The worker is gone: its sessions are free. */
	forget(workerId: bigint): void {
		for (const [sessionId, binding] of this.#bindings) {
			if (binding.workerId === workerId) this.#bindings.delete(sessionId);
		}
	}

	/** Idempotent. */
	async close(): Promise<void> {
		this.#closed = true;
		this.#bindings.clear();
		await this.#free();
	}

	async #free(): Promise<void> {
		try {
			await Promise.all([this.#publisher?.close(), this.#subscription?.close()]);
		} catch (error) {
			this.#log?.warn("The events of session affinity could not be closed", { error });
		}
	}

	#isIdle({ active, idleSince }: Binding): boolean {
		return active === 0 && this.#now() - idleSince > this.options.ttlMs;
	}

	/** Nanoseconds of the wall clock, as Dynamo's; never the same twice. */
	#nextSequence(): bigint {
		const now = BigInt(Date.now()) * 1_000_000n;
		this.#lastSequence = now > this.#lastSequence ? now : this.#lastSequence + 1n;
		return this.#lastSequence;
	}

	#touch(sessionId: string, binding: Binding): void {
		binding.idleSince = this.#now();
		this.#keep(sessionId, binding);
		const { workerId, dpRank, sequence, writerId } = binding;
		this.#publisher?.publish(encodeSessionAffinity({ sessionId, workerId, dpRank, sequence, writerId }));
	}

	#keep(sessionId: string, binding: Binding): void {
		this.#bindings.delete(sessionId);
		this.#bindings.set(sessionId, binding);
		// The oldest ones first: those that have run out, and one too many.
		for (const [oldest, other] of this.#bindings) {
			if (oldest === sessionId || (!this.#isIdle(other) && this.#bindings.size <= MAX_SESSIONS)) break;
			this.#bindings.delete(oldest);
		}
	}

	#onEnvelope({ payload }: EventEnvelope): void {
		if (this.#closed) return;
		try {
			this.#apply(decodeSessionAffinity(payload));
		} catch (error) {
			this.#log?.warn("A binding of a session could not be read", { error });
		}
	}

	#apply({ sessionId, workerId, dpRank, sequence, writerId }: SessionAffinityEvent): void {
		if (Buffer.byteLength(sessionId) > MAX_SESSION_ID_BYTES || !this.#isMember(workerId)) return;
		const known = this.#bindings.get(sessionId);
		const valid = known !== undefined && !this.#isIdle(known);
		const same = valid && known.sequence === sequence && known.writerId === writerId;
		// One's own words come back: of a binding that was replaced since they say nothing.
		if (!same && writerId === this.#writerId) return;
		if (valid && !same && !isLater({ sequence, writerId }, known)) return;
		const binding: Binding = same
			? known
			: { workerId, dpRank, sequence, writerId, active: known?.active ?? 0, idleSince: 0 };
		binding.idleSince = this.#now();
		this.#keep(sessionId, binding);
	}
}

/** Bindings that were made at the same time are ordered by who made them, so that all frontends keep the same one. */
function isLater(a: Pick<Binding, "sequence" | "writerId">, b: Pick<Binding, "sequence" | "writerId">): boolean {
	return a.sequence === b.sequence ? a.writerId > b.writerId : a.sequence > b.sequence;
}
