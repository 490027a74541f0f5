// SPDX-License-Identifier: Apache-2.0
// The lease on which all records of a process hang: kept alive, and granted again under the same id when it is lost.
import type { Logger } from "../../observability/logging.js";
import { Backoff, Pause } from "../backoff.js";
import type { ConnectionReport } from "../connection-report.js";
import { type EtcdClient, isLeaseGone, isLeaseThere } from "./etcd-client.js";

/** Longest wait for one keep-alive. */
const RENEW_TIMEOUT_MS = 5000;
/** Tries while etcd is away: from the first wait to the longest one. */
const RETRY_MS = { first: 100, max: 2000 } as const;

export interface EtcdLeaseOptions {
	readonly client: EtcdClient;
	/** As granted by etcd; it is also the process' instance id. */
	readonly id: bigint;
	readonly ttlSeconds: number;
	readonly report: ConnectionReport;
	readonly log: Logger;
	/** Brings the keys in etcd in line with what this process wants there; called after each sign of life. */
	readonly reconcile: () => Promise<void>;
}

/**
 * Renews the lease at half of its time to live. A lease that is gone (it ran out, was revoked, or etcd came back empty)
 * is granted again with the same id, so that the records of the process stay as they are. Nothing here ever gives up.
 */
export class EtcdLease {
	readonly #options: EtcdLeaseOptions;
	readonly #pause = new Pause();
	readonly #backoff = new Backoff(RETRY_MS.first, RETRY_MS.max);
	readonly #running: Promise<void>;
	#gone = false;
	#hurry = false;
	#closed = false;

	constructor(options: EtcdLeaseOptions) {
		this.#options = options;
		this.#running = this.#run();
	}

	/** Looks after the lease now, because there is reason to doubt it. */
	check(gone = false): void {
		this.#gone ||= gone;
		this.#hurry = true;
		this.#pause.cutShort();
	}

	/** Stops renewing; resolves when no call is under way any more. */
	async close(): Promise<void> {
		this.#closed = true;
		this.#pause.cutShort();
		await this.#running;
	}

	async #run(): Promise<void> {
		const { ttlSeconds, report } = this.#options;
		let waitMs = this.#halfTime();
		for (;;) {
			if (!this.#hurry) await this.#pause.wait(waitMs);
			this.#hurry = false;
			if (this.#closed) return;
			try {
				await this.#renew(Math.min(RENEW_TIMEOUT_MS, (ttlSeconds * 1000) / 3));
				report.succeeded();
				this.#backoff.reset();
				waitMs = this.#halfTime();
			} catch (error) {
				if (this.#closed) return;
				if (isLeaseGone(error)) this.#gone = true;
				else report.failed("keeping the lease alive", error);
				waitMs = this.#backoff.next();
			}
		}
	}

	async #renew(timeoutMs: number): Promise<void> {
		const { client, id, log, report } = this.#options;
		// After a failure the stream's login may be void; only calls outside of streams renew it. This one also says
		// whether there is a lease to keep alive.
		if (report.away && (await client.leaseKeys(id)).ttlSeconds < 0) this.#gone = true;
		if (!this.#gone && (await client.renewLease(id, timeoutMs)) <= 0) {
			this.#gone = true;
			// All processes of a fleet notice this at about the same time.
			await this.#pause.wait(Math.random() * 2 * RETRY_MS.first);
			if (this.#closed) return;
		}
		if (this.#gone) {
			await this.#grantAgain();
			log.warn("the etcd lease was lost; it was granted again and all records are written again", {
				lease: id.toString(16),
			});
		}
		await this.#options.reconcile();
	}

	async #grantAgain(): Promise<void> {
		const { client, id, ttlSeconds } = this.#options;
		try {
			await client.grantLease(ttlSeconds, id);
		} catch (error) {
			// An earlier try got through without our hearing of it.
			if (!isLeaseThere(error)) throw error;
		}
		this.#gone = false;
	}

	#halfTime(): number {
		return this.#options.ttlSeconds * 500;
	}
}
