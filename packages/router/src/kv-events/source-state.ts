// SPDX-License-Identifier: Apache-2.0
// What a router knows of one worker's stream of KV events: how far it has followed it, and what has to be asked for. Pure:
// who asks, and when, is the subscriber's.
import type { RouterEvent, WorkerKvAnswer } from "@dynamo-ts/protocols/internal";

/** Events that may wait for an answer; more, and all of the worker is asked for anew. */
const MAX_BUFFERED_EVENTS = 1024;

/** Takes events in order. */
export interface OrderedSink {
	/** Forget what was known of the worker: what follows is all there is. */
	reset(): void;
	apply(event: RouterEvent): void;
}

/** What to ask the worker: events from an id on, or a dump of everything. */
export type Wanted = { readonly kind: "range"; readonly from: bigint } | { readonly kind: "dump" };

/**
 * Follows ids: the next one is applied, an older one is ignored, a later one means that something was missed. While
 * something is being asked for, events wait.
 */
export class SourceState {
	readonly #sink: OrderedSink;
	/** Id of the last event that was applied; undefined until the first dump is in. */
	#cursor: bigint | undefined;
	#waiting: RouterEvent[] = [];
	/** More came than could wait. */
	#overflowed = false;
	/** An id that should be past came by: perhaps the numbering began anew. */
	#suspicious = false;
	/** What must be asked for; undefined when nothing is missing. */
	#wanted: Wanted | undefined = { kind: "dump" };
	ignored = 0;
	gaps = 0;

	constructor(sink: OrderedSink) {
		this.#sink = sink;
	}

	get cursor(): bigint | undefined {
		return this.#cursor;
	}

	/** What has to be asked for now. */
	get wanted(): Wanted | undefined {
		return this.#wanted;
	}

	/** An event arrived. */
	take(event: RouterEvent): void {
		if (this.#wanted !== undefined) {
			this.#wait(event);
			return;
		}
		const cursor = this.#cursor ?? 0n;
		if (event.eventId === cursor + 1n) {
			this.#apply(event);
		} else if (event.eventId <= cursor) {
			this.ignored++;
			this.#suspicious = true;
		} else {
			this.gaps++;
			this.#wanted = { kind: "range", from: cursor + 1n };
			this.#wait(event);
		}
	}

	/** True once after an event came that should be long past; {@link check} finds out what it was. */
	takeSuspicion(): boolean {
		const was = this.#suspicious;
		this.#suspicious = false;
		return was;
	}

	/** Asks whether something was missed without anything after it. */
	check(): void {
		if (this.#wanted === undefined) this.#wanted = { kind: "range", from: (this.#cursor ?? 0n) + 1n };
	}

	/** Asks for everything. */
	resync(): void {
		this.#wanted = { kind: "dump" };
	}

	/** The question is on its way. A dump will be younger than all that waits. */
	asked(): void {
		if (this.#wanted?.kind !== "dump") return;
		this.#waiting = [];
		this.#overflowed = false;
	}

	/** Nobody can be asked: what is missing is lost, and what was known may be wrong. */
	acceptLoss(): void {
		const first = this.#waiting[0];
		if (first === undefined) return;
		this.#sink.reset();
		this.#cursor = first.eventId - 1n;
		this.#wanted = undefined;
		this.#replay();
	}

	/** The answer to {@link wanted} is in. @returns false when it was none that helps; then all is asked for. */
	answer(answer: WorkerKvAnswer): boolean {
		const wanted = this.#wanted;
		if (wanted === undefined) return true;
		switch (answer.type) {
			case "dump":
				this.#sink.reset();
				for (const event of answer.events) this.#sink.apply(event);
				this.#cursor = answer.lastEventId;
				break;
			case "events":
				if (wanted.kind === "dump" || this.#cursor === undefined) return this.#all();
				if (answer.lastEventId < this.#cursor) return this.#all();
				for (const event of answer.events) {
					if (event.eventId <= this.#cursor) continue;
					if (event.eventId !== this.#cursor + 1n) return this.#all();
					this.#apply(event);
				}
				break;
			case "too_new":
				// It has less than we have seen: it counts anew.
				if (wanted.kind === "dump" || answer.newestAvailable + 1n < wanted.from) return this.#all();
				break;
			default:
				return this.#all();
		}
		if (this.#overflowed) return this.#all();
		this.#wanted = undefined;
		this.#replay();
		return true;
	}

	/** The worker cannot be asked, now or ever: nothing is known of it until it can. */
	giveUp(): void {
		this.#sink.reset();
		this.#cursor = undefined;
		this.#waiting = [];
		this.#overflowed = false;
		this.#wanted = { kind: "dump" };
	}

	#all(): false {
		this.#wanted = { kind: "dump" };
		this.#overflowed = false;
		this.#waiting = [];
		return false;
	}

	#wait(event: RouterEvent): void {
		if (this.#waiting.length < MAX_BUFFERED_EVENTS) this.#waiting.push(event);
		else this.#overflowed = true;
	}

	/** What came while the question was under way. */
	#replay(): void {
		const waiting = this.#waiting;
		this.#waiting = [];
		for (const event of waiting) {
			const isOld = this.#wanted === undefined && event.eventId <= (this.#cursor ?? 0n);
			// In the answer already.
			if (!isOld) this.take(event);
		}
	}

	#apply(event: RouterEvent): void {
		this.#cursor = event.eventId;
		this.#sink.apply(event);
	}
}
