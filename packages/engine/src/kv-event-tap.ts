// SPDX-License-Identifier: Apache-2.0
// An ear at an engine's cache that is there before the engine starts, for listeners that come later.

import type { KvCacheEvent } from "@dynamo-ts/protocols/internal";
import type { Engine } from "./engine.js";

/** Events that are kept while nobody takes them: an engine that works before its worker is there is rare. */
const MAX_EARLY_BATCHES = 10_000;

/**
 * Listens to an engine's cache before it starts, because that is when engines want to be asked, and hands on to whoever
 * comes later.
 */
export class KvEventTap {
	#early: (readonly KvCacheEvent[])[] = [];
	#sink: ((events: readonly KvCacheEvent[]) => void) | undefined;

	/** @returns undefined for an engine that tells nothing, or that has started already. */
	static attach(engine: Engine): KvEventTap | undefined {
		const tap = new KvEventTap();
		try {
			engine.onKvEvents((events) => tap.#take(events));
		} catch {
			return undefined;
		}
		return tap;
	}

	#take(events: readonly KvCacheEvent[]): void {
		if (this.#sink !== undefined) this.#sink(events);
		else if (this.#early.length < MAX_EARLY_BATCHES) this.#early.push(events);
	}

	/** From now on events go to `sink`, those that came before first. */
	drainTo(sink: (events: readonly KvCacheEvent[]) => void): void {
		for (const events of this.#early) sink(events);
		this.#early = [];
		this.#sink = sink;
	}
}
