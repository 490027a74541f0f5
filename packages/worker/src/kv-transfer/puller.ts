// SPDX-License-Identifier: Apache-2.0
// Fetches prompts from prefill workers, over connections that are kept for the next one.
import type { KvFetch } from "@dynamo-ts/engine";
import type { ClientTls } from "@dynamo-ts/runtime/internal";
import { PullConnection, type PullOutcome } from "./pull-connection.js";

/** Connections per prefill worker that wait for the next prompt. */
const MAX_IDLE = 4;
/** Shorter than the other side's, so that it does not close while we begin. Milliseconds. */
const IDLE_MS = 30_000;
/** Longest wait for a release to go out, milliseconds. */
const RELEASE_MS = 2000;

export interface PullerOptions {
	readonly tls: ClientTls | undefined;
	readonly connectTimeoutMs: number;
}

/** Where to fetch. */
export interface PullSource {
	readonly host: string;
	readonly port: number;
	readonly handle: string;
	/** Shared memory may do. */
	readonly mayShare: boolean;
}

interface Idle {
	readonly connection: PullConnection;
	readonly timer: NodeJS.Timeout;
}

export class Puller {
	readonly #options: PullerOptions;
	readonly #all = new Set<PullConnection>();
	readonly #idle = new Map<string, Idle[]>();
	#closed = false;

	constructor(options: PullerOptions) {
		this.#options = options;
	}

	/** Fills what `fetch` wants, and leaves its memory alone once the promise resolves. Never rejects. */
	async pull(source: PullSource, fetch: KvFetch, blockBytes: number, timeoutMs: number): Promise<PullOutcome> {
		const deadline = performance.now() + timeoutMs;
		for (;;) {
			const kept = this.#take(source);
			const connection = kept ?? this.#dial(source, timeoutMs);
			connection.ref(true);
			const left = Math.max(1, deadline - performance.now());
			const outcome = await connection.pull(source.handle, fetch, blockBytes, left, source.mayShare);
			if (outcome.failure === undefined || outcome.failure === "refused") this.#keep(source, connection);
			else connection.destroy();
			// One that was kept may have been closed by the other side in this very moment.
			if (kept !== undefined && outcome.early && !fetch.signal.aborted && !this.#closed) continue;
			return outcome;
		}
	}

	/** Lets the prefill worker forget what it keeps; does not wait, and failing does no harm. */
	release(source: PullSource): void {
		if (this.#closed) return;
		const kept = this.#take(source);
		const connection = kept ?? this.#dial(source, RELEASE_MS);
		connection.release(source.handle);
		this.#keep(source, connection);
	}

	close(): void {
		this.#closed = true;
		for (const idle of this.#idle.values()) for (const { timer } of idle) clearTimeout(timer);
		this.#idle.clear();
		for (const connection of this.#all) connection.destroy();
	}

	#dial({ host, port }: PullSource, timeoutMs: number): PullConnection {
		const connectTimeoutMs = Math.min(timeoutMs, this.#options.connectTimeoutMs);
		const connection = new PullConnection({ host, port, tls: this.#options.tls, connectTimeoutMs }, () => {
			this.#all.delete(connection);
		});
		this.#all.add(connection);
		return connection;
	}

	#take({ host, port }: PullSource): PullConnection | undefined {
		const key = `${host} ${port}`;
		const list = this.#idle.get(key);
		for (let idle = list?.pop(); idle !== undefined; idle = list?.pop()) {
			clearTimeout(idle.timer);
			if (list?.length === 0) this.#idle.delete(key);
			if (idle.connection.usable) return idle.connection;
		}
		return undefined;
	}

	#keep({ host, port }: PullSource, connection: PullConnection): void {
		const key = `${host} ${port}`;
		const list = this.#idle.get(key) ?? [];
		if (this.#closed || !connection.usable || list.length >= MAX_IDLE) {
			connection.end();
			return;
		}
		connection.ref(false);
		const timer = setTimeout(() => {
			list.splice(
				list.findIndex((idle) => idle.connection === connection),
				1,
			);
			if (list.length === 0 && this.#idle.get(key) === list) this.#idle.delete(key);
			connection.end();
		}, IDLE_MS).unref();
		list.push({ connection, timer });
		this.#idle.set(key, list);
	}
}
