// SPDX-License-Identifier: Apache-2.0
// The one connection of a process to NATS: reconnects for ever with jitter, never ends the process.
import { DynamoError, ENV } from "@dynamo-ts/protocols/internal";
import type { NatsConnection as Connection } from "nats";
import type { Logger } from "../observability/logging.js";
import { type NatsSettings, natsConnectionOptions, natsServerNames } from "./nats-settings.js";

/** First and longest pause between two tries to connect, milliseconds; each is drawn from half to all of its length. */
const FIRST_PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 2000;
/** One try to connect, milliseconds. */
const DIAL_TIMEOUT_MS = 5000;
/** A server that answers none of two pings this far apart is taken for lost. */
const PING_INTERVAL_MS = 10_000;

/** Told that the connection was lost or stands again. */
export type NatsStateListener = (up: boolean) => void;

/** A connection to NATS that is shared by everything in the process. Subscriptions outlive a lost connection. */
export class NatsConnection {
	/** The library's connection; always the same object. */
	readonly raw: Connection;
	/** The servers, for messages. */
	readonly servers: string;
	readonly #log: Logger;
	readonly #listeners = new Set<NatsStateListener>();
	readonly #backoff: Backoff;
	/** Called at each change, the end included. */
	readonly #waiters = new Set<() => void>();
	#up = true;
	#closed = false;
	#changedAt = performance.now();
	#maxPayload: number;

	private constructor(raw: Connection, servers: string, backoff: Backoff, log: Logger) {
		this.raw = raw;
		this.servers = servers;
		this.#backoff = backoff;
		this.#log = log;
		this.#maxPayload = raw.info?.max_payload ?? 1024 * 1024;
		void this.#follow();
		raw.closed().then((error) => this.#onClosed(error ?? undefined));
	}

	/**
	 * Connects; tries again until the settings' startup time is over.
	 * @throws DynamoError `InvalidArgument` for bad settings, `Unavailable` when no server was reached in time or
	 * `signal` was aborted.
	 */
	static async open(settings: NatsSettings, log: Logger, signal?: AbortSignal): Promise<NatsConnection> {
		// Only processes that use NATS pay for the library.
		const nats = await import("nats");
		const servers = natsServerNames(settings);
		const backoff = new Backoff();
		const options = {
			...natsConnectionOptions(settings, nats),
			timeout: DIAL_TIMEOUT_MS,
			maxReconnectAttempts: -1,
			ignoreAuthErrorAbort: true,
			// Asked for again and again during one pause.
			reconnectDelayHandler: () => backoff.pause,
			pingInterval: PING_INTERVAL_MS,
			noAsyncTraces: true,
		};
		const until = performance.now() + settings.startupTimeoutMs;
		for (let told = false; ; ) {
			try {
				const raw = await nats.connect(options);
				if (signal?.aborted) {
					await raw.close();
					throw new Error("the runtime is shutting down");
				}
				backoff.reset();
				log.info("connected to NATS", { server: servers, max_payload: raw.info?.max_payload });
				return new NatsConnection(raw, servers, backoff, log);
			} catch (error) {
				const pause = backoff.pause;
				backoff.grow();
				if (signal?.aborted || performance.now() + pause > until) throw notReached(servers, settings, error);
				if (!told) {
					told = true;
					log.warn("NATS is not reached yet; trying on", {
						server: servers,
						error,
						timeout_ms: settings.startupTimeoutMs,
					});
				}
				await new Promise((resolve) => setTimeout(resolve, pause));
			}
		}
	}

	/** True while the connection stands. */
	get up(): boolean {
		return this.#up;
	}

	/** How long it has been up or down, milliseconds. */
	get sinceMs(): number {
		return performance.now() - this.#changedAt;
	}

	/** Largest message that the server takes, headers included, bytes: what it announced last. */
	get maxPayload(): number {
		return this.#maxPayload;
	}

	/** Calls back after each loss and return; returns how to end that. */
	onState(listener: NatsStateListener): () => void {
		this.#listeners.add(listener);
		return () => void this.#listeners.delete(listener);
	}

	/**
	 * Resolves once the server has processed everything sent so far; waits through a lost connection.
	 * @throws DynamoError `Unavailable` when the connection is closed or `signal` aborted before.
	 */
	async flushed(signal?: AbortSignal): Promise<void> {
		for (;;) {
			if (this.#closed) throw new DynamoError("Unavailable", "the connection to NATS is closed", { local: true });
			if (signal?.aborted) throw new DynamoError("Unavailable", "NATS is not waited for any more", { local: true });
			let wake = () => {};
			const changed = new Promise<boolean>((resolve) => {
				wake = () => resolve(false);
			});
			this.#waiters.add(wake);
			signal?.addEventListener("abort", wake);
			// The server's answer never comes when the connection is lost meanwhile.
			const answered = this.#up ? this.raw.flush().then(() => true) : changed;
			const done = await Promise.race([answered, changed]).catch(() => changed);
			this.#waiters.delete(wake);
			signal?.removeEventListener("abort", wake);
			if (done) return;
		}
	}

	async close(): Promise<void> {
		if (this.#closed) return;
		this.#closed = true;
		this.#listeners.clear();
		for (const wake of [...this.#waiters]) wake();
		await this.raw.close();
	}

	async #follow(): Promise<void> {
		try {
			for await (const status of this.raw.status()) {
				if (status.type === "disconnect") this.#setUp(false);
				else if (status.type === "reconnect") this.#setUp(true);
				else if (status.type === "reconnecting") this.#backoff.grow();
				else if (status.type === "error") {
					this.#log.warn("NATS reported an error", { server: this.servers, reason: String(status.data) });
				}
			}
		} catch (error) {
			this.#log.debug("the state of the NATS connection is not told any more", { error });
		}
	}

	#setUp(up: boolean): void {
		if (this.#closed || up === this.#up) return;
		const after = Math.round(this.sinceMs);
		this.#up = up;
		this.#changedAt = performance.now();
		if (up) {
			this.#backoff.reset();
			this.#maxPayload = this.raw.info?.max_payload ?? this.#maxPayload;
			this.#log.info("connected to NATS again", { server: this.servers, away_ms: after });
		} else {
			this.#log.warn("connection to NATS lost; reconnecting until it stands", { server: this.servers });
		}
		for (const wake of [...this.#waiters]) wake();
		for (const listener of [...this.#listeners]) {
			try {
				listener(up);
			} catch (error) {
				this.#log.error("a listener of the NATS connection failed", { error });
			}
		}
	}

	#onClosed(error: Error | undefined): void {
		if (this.#closed) return;
		this.#setUp(false);
		this.#closed = true;
		for (const wake of [...this.#waiters]) wake();
		this.#log.error("the connection to NATS is closed for good; restart the process to use it again", {
			server: this.servers,
			error,
		});
	}
}

/** Pauses that double up to a limit, each with jitter, so that a fleet does not come back in one instant. */
class Backoff {
	#longest = FIRST_PAUSE_MS;
	/** Until the next try, milliseconds. */
	pause = withJitter(FIRST_PAUSE_MS);

	/** A try was made. */
	grow(): void {
		this.#longest = Math.min(2 * this.#longest, LONGEST_PAUSE_MS);
		this.pause = withJitter(this.#longest);
	}

	reset(): void {
		this.#longest = FIRST_PAUSE_MS;
		this.pause = withJitter(FIRST_PAUSE_MS);
	}
}

function withJitter(pauseMs: number): number {
	return Math.round(pauseMs * (0.5 + Math.random() / 2));
}

function notReached(servers: string, settings: NatsSettings, error: unknown): DynamoError {
	const reason = (error as Error).message;
	const text = `no connection to NATS at ${servers} within ${settings.startupTimeoutMs} ms: ${reason}. Start nats-server or set ${ENV.NATS_SERVER}`;
	return new DynamoError("Unavailable", text, { publicMessage: text, cause: error, local: true });
}
