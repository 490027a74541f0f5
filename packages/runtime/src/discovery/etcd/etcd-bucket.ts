// SPDX-License-Identifier: Apache-2.0
// One bucket of the etcd backend: listed, then followed; listed anew whenever the stream was interrupted.
import type { Bucket, DiscoveryRecord } from "@dynamo-ts/protocols/internal";
import { DynamoError } from "@dynamo-ts/protocols/internal";
import type { Logger } from "../../observability/logging.js";
import { Backoff, Pause } from "../backoff.js";
import { type ConnectionReport, errorText } from "../connection-report.js";
import type { DiscoveryEvent, Watch } from "../discovery.js";
import { RecordView } from "../record-view.js";
import type { EtcdClient, EtcdEntry, EtcdWatchStream } from "./etcd-client.js";

const RETRY_MS = { first: 100, max: 2000 } as const;
/** Longest wait for the server to take a watch. */
const CREATE_TIMEOUT_MS = 5000;
/** A stream that lasted so long has worked. */
const SETTLED_MS = 5000;

export interface EtcdBucketOptions {
	readonly bucket: Bucket;
	readonly client: EtcdClient;
	readonly report: ConnectionReport;
	readonly log: Logger;
	/** How long records stay that are missing when etcd comes back. */
	readonly keepMissingMs: number;
	/** The store could be read again after an interruption. */
	readonly onReconnect: () => void;
}

/**
 * Follows a prefix. After every interruption it lists again and tells only the differences, and starts a new watch from
 * the listing's revision: a watch that were resumed would wait for ever for a revision that an emptied store reaches
 * only much later.
 *
 * While etcd is away all that was known stays. Records that are missing when it is back, because it lost its data or let
 * all leases run out, stay for some seconds more: their owners write them again, and requests do not fail meanwhile.
 */
export class EtcdBucket {
	readonly #options: EtcdBucketOptions;
	readonly #prefix: string;
	readonly #view: RecordView;
	/** Keys that are missing in the store, with the time at which they are given up. */
	readonly #kept = new Map<string, number>();
	readonly #pause = new Pause();
	#revision = 0n;
	#keptTimer: NodeJS.Timeout | undefined;
	#stream: EtcdWatchStream | undefined;
	#endStream: ((why: string) => void) | undefined;
	#listed = false;
	#whenListed: (() => void)[] = [];
	#running: Promise<void> | undefined;
	#closed = false;

	constructor(options: EtcdBucketOptions) {
		this.#options = options;
		this.#prefix = `${options.bucket}/`;
		this.#view = new RecordView(options.log);
	}

	/** Whether the bucket has been listed and is being followed. */
	get open(): boolean {
		return this.#listed && !this.#closed;
	}

	/** What is known; while etcd is away, what was known last. */
	records(): DiscoveryRecord[] {
		return this.#view.records();
	}

	/** @throws DynamoError `Unavailable` when the bucket could not be listed within `timeoutMs`. */
	async watch(onEvent: (event: DiscoveryEvent) => void, timeoutMs: number, onLast: () => void): Promise<Watch> {
		this.#running ??= this.#run();
		if (!this.#listed) await this.#firstListing(timeoutMs);
		return this.#view.watch(onEvent, onLast);
	}

	close(): void {
		this.#closed = true;
		clearTimeout(this.#keptTimer);
		this.#view.close();
		this.#endStream?.("closed");
		this.#pause.cutShort();
		for (const settle of this.#whenListed.splice(0)) settle();
	}

	async #firstListing(timeoutMs: number): Promise<void> {
		await new Promise<void>((resolve) => {
			const timer = setTimeout(resolve, timeoutMs);
			this.#whenListed.push(() => {
				clearTimeout(timer);
				resolve();
			});
		});
		if (this.#closed) throw new DynamoError("Unavailable", "discovery is closed");
		if (!this.#listed) {
			throw new DynamoError(
				"Unavailable",
				`etcd at ${this.#options.client.endpoint} did not list ${this.#prefix} within ${timeoutMs} ms`,
			);
		}
	}

	async #run(): Promise<void> {
		const { report, log } = this.#options;
		const backoff = new Backoff(RETRY_MS.first, RETRY_MS.max);
		while (!this.#closed) {
			let why: string;
			const started = performance.now();
			try {
				await this.#list();
				why = await this.#follow();
				log.debug("a watch ended; the bucket is listed again", { bucket: this.#options.bucket, why });
			} catch (error) {
				why = errorText(error);
				if (!this.#closed) report.failed(`watching ${this.#prefix}`, error);
			}
			if (this.#closed) return;
			if (performance.now() - started > SETTLED_MS) backoff.reset();
			await this.#pause.wait(backoff.next());
		}
	}

	async #list(): Promise<void> {
		const { client, report, onReconnect } = this.#options;
		const { revision, entries } = await client.range(this.#prefix);
		if (this.#closed) return;
		this.#revision = revision;
		const present = new Set(entries.map((entry) => entry.key));
		const missing = [...this.#view.keys()].filter((key) => !present.has(key));
		for (const entry of entries) this.#put(entry);
		this.#missing(missing);
		report.succeeded();
		if (this.#listed) onReconnect();
		this.#listed = true;
		for (const settle of this.#whenListed.splice(0)) settle();
	}

	/** Resolves with the reason when the stream is over. */
	async #follow(): Promise<string> {
		const { client } = this.#options;
		let timer: NodeJS.Timeout | undefined;
		try {
			return await new Promise<string>((resolve, reject) => {
				this.#endStream = resolve;
				timer = setTimeout(() => reject(new Error("etcd did not take the watch in time")), CREATE_TIMEOUT_MS);
				client
					.watch(this.#prefix, this.#revision + 1n, {
						onCreated: () => clearTimeout(timer),
						onPut: (entry) => {
							this.#revision = entry.modRevision;
							this.#put(entry);
						},
						onDelete: (key, modRevision) => {
							this.#revision = modRevision;
							this.#missing([key]);
						},
						onEnd: (why) => reject(new Error(why)),
					})
					.then((stream) => {
						if (this.#endStream === resolve) this.#stream = stream;
						else stream.cancel();
					}, reject);
				if (this.#closed) resolve("closed");
			});
		} finally {
			clearTimeout(timer);
			this.#endStream = undefined;
			this.#stream?.cancel();
			this.#stream = undefined;
		}
	}

	#put(entry: EtcdEntry): void {
		if (this.#closed) return;
		this.#kept.delete(entry.key);
		this.#view.put(entry.key, entry.value);
	}

	#missing(keys: readonly string[]): void {
		const { log, keepMissingMs, bucket, report } = this.#options;
		const fresh = keys.filter((key) => this.#view.has(key) && !this.#kept.has(key));
		if (fresh.length === 0 || this.#closed) return;
		if (!report.unsettled) {
			for (const key of fresh) this.#view.remove(key);
			return;
		}
		log.info("records are missing in etcd after it was away; they are kept while their owners may write them again", {
			bucket,
			records: fresh.length,
			seconds: keepMissingMs / 1000,
		});
		for (const key of fresh) this.#kept.set(key, performance.now() + keepMissingMs);
		this.#watchKept();
	}

	#watchKept(): void {
		clearTimeout(this.#keptTimer);
		const now = performance.now();
		let next = Number.POSITIVE_INFINITY;
		for (const [key, until] of [...this.#kept]) {
			if (until > now) next = Math.min(next, until);
			else {
				this.#kept.delete(key);
				this.#view.remove(key);
			}
		}
		if (next === Number.POSITIVE_INFINITY) return;
		this.#keptTimer = setTimeout(() => this.#watchKept(), next - now + 1);
		this.#keptTimer.unref();
	}
}
