// SPDX-License-Identifier: Apache-2.0
// The local picture of one bucket of a remote store: what is there, and who is told about changes.
import { type DiscoveryRecord, parseDiscoveryRecord, parseJson } from "@dynamo-ts/protocols/internal";
import type { Logger } from "../observability/logging.js";
import { errorText } from "./connection-report.js";
import type { DiscoveryEvent, Watch } from "./discovery.js";

interface KnownRecord {
	/** The text last seen, readable or not. */
	text: string;
	/** The last content that could be read; undefined if none yet. */
	record: DiscoveryRecord | undefined;
}

/** Holds the records of a bucket and turns what a store says into events; equal content is no event. */
export class RecordView {
	readonly #known = new Map<string, KnownRecord>();
	readonly #watchers = new Set<(event: DiscoveryEvent) => void>();
	readonly #log: Logger;

	constructor(log: Logger) {
		this.#log = log;
	}

	/** Whether anyone watches. */
	get watched(): boolean {
		return this.#watchers.size > 0;
	}

	keys(): IterableIterator<string> {
		return this.#known.keys();
	}

	has(key: string): boolean {
		return this.#known.has(key);
	}

	/** All readable records. */
	records(): DiscoveryRecord[] {
		const records: DiscoveryRecord[] = [];
		for (const { record } of this.#known.values()) if (record !== undefined) records.push(record);
		return records;
	}

	/** What the store holds under a key. What cannot be read is told once and leaves the last good content in force. */
	put(key: string, text: string): void {
		if (this.#known.get(key)?.text === text) return;
		let record: DiscoveryRecord;
		try {
			record = parseDiscoveryRecord(parseJson(text));
		} catch (error) {
			this.#log.warn("Failed to parse discovery record; it is left out", { key, error: errorText(error) });
			this.#known.set(key, { text, record: this.#known.get(key)?.record });
			return;
		}
		this.putRecord(key, text, record);
	}

	/** The same for a record that was read already; `text` tells whether it is a new one. */
	putRecord(key: string, text: string, record: DiscoveryRecord): void {
		if (this.#known.get(key)?.text === text) return;
		this.#known.set(key, { text, record });
		this.#tell({ type: "put", key, record });
	}

	/** The store holds nothing under a key any more. */
	remove(key: string): void {
		const known = this.#known.get(key);
		if (known === undefined) return;
		this.#known.delete(key);
		if (known.record !== undefined) this.#tell({ type: "delete", key });
	}

	/** Tells `onEvent` what is there, at once, and then each change. */
	watch(onEvent: (event: DiscoveryEvent) => void, onLast?: () => void): Watch {
		let open = true;
		const deliver = (event: DiscoveryEvent): void => {
			if (open) onEvent(event);
		};
		for (const [key, { record }] of this.#known) if (record !== undefined) deliver({ type: "put", key, record });
		this.#watchers.add(deliver);
		return {
			close: () => {
				open = false;
				if (this.#watchers.delete(deliver) && this.#watchers.size === 0) onLast?.();
			},
		};
	}

	/** Ends all watches. */
	close(): void {
		this.#watchers.clear();
	}

	#tell(event: DiscoveryEvent): void {
		for (const deliver of [...this.#watchers]) {
			try {
				deliver(event);
			} catch (error) {
				this.#log.error("a discovery watcher failed", { key: event.key, error });
			}
		}
	}
}
