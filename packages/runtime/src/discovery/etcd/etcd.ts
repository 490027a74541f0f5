// SPDX-License-Identifier: Apache-2.0
// Discovery through etcd, with Dynamo's keys: v1/{bucket}/... on one lease per process.
import {
	type Bucket,
	type DiscoveryRecord,
	DynamoError,
	ENV,
	recordKey,
	stringifyJson,
} from "@dynamo-ts/protocols/internal";
import type { Logger } from "../../observability/logging.js";
import { Backoff, Pause } from "../backoff.js";
import { ConnectionReport, errorText } from "../connection-report.js";
import type { Discovery, DiscoveryEvent, Watch } from "../discovery.js";
import { RecordView } from "../record-view.js";
import { EtcdBucket } from "./etcd-bucket.js";
import { EtcdClient, isLeaseGone, isRefusal } from "./etcd-client.js";
import type { EtcdConfig } from "./etcd-config.js";
import { EtcdLease } from "./etcd-lease.js";

export interface EtcdDiscoveryOptions {
	readonly config: EtcdConfig;
	readonly log: Logger;
	/** Gives up waiting for etcd at start. */
	readonly signal?: AbortSignal;
	/** How long records stay that are missing when etcd comes back; milliseconds, 10,000 unless a test says otherwise. */
	readonly keepMissingMs?: number;
}

/** How long a write, or the first listing, waits for an etcd that is away. */
const PATIENCE_MS = 30_000;
const RETRY_MS = { first: 100, max: 2000 } as const;
const STARTUP_RETRY_MS = { first: 1000, max: 5000 } as const;
/** Longest wait for etcd when leaving: the lease runs out by itself. */
const LEAVE_TIMEOUT_MS = 2000;
const KEEP_MISSING_MS = 10_000;

/**
 * Discovery through etcd. All records of the process hang on one lease, whose id is the instance id. An etcd that goes
 * away ends nothing: what is known stays in use, and when it is back, whatever it holds by then, the lease and the
 * records of this process are put in order again.
 */
export class EtcdDiscovery implements Discovery {
	readonly backend = "etcd";
	readonly instanceId: bigint;
	readonly #client: EtcdClient;
	readonly #log: Logger;
	readonly #report: ConnectionReport;
	readonly #keepMissingMs: number;
	readonly #lease: EtcdLease;
	/** What this process wants in etcd. */
	readonly #own = new Map<string, string>();
	readonly #buckets = new Map<Bucket, EtcdBucket>();
	readonly #closing = new AbortController();
	#writing: Promise<void> = Promise.resolve();
	#closed: Promise<void> | undefined;

	private constructor(options: EtcdDiscoveryOptions, client: EtcdClient, report: ConnectionReport, lease: bigint) {
		this.instanceId = lease;
		this.#client = client;
		this.#log = options.log;
		this.#report = report;
		this.#keepMissingMs = options.keepMissingMs ?? KEEP_MISSING_MS;
		this.#lease = new EtcdLease({
			client,
			id: lease,
			ttlSeconds: options.config.leaseTtlSeconds,
			report,
			log: options.log,
			reconcile: () => this.#enqueue(() => this.#reconcile()),
		});
	}

	/**
	 * Takes a lease; tries for as long as the configuration says.
	 * @throws DynamoError `Unavailable` when etcd does not answer or refuses us, `InvalidArgument` for unreadable certificates.
	 */
	static async open(options: EtcdDiscoveryOptions): Promise<EtcdDiscovery> {
		const client = await EtcdClient.create(options.config);
		const name = `etcd at ${client.endpoints.join(", ")}`;
		try {
			const lease = await firstLease(client, name, options);
			return new EtcdDiscovery(options, client, new ConnectionReport(options.log, name), lease);
		} catch (error) {
			client.close();
			throw error;
		}
	}

	async put(record: DiscoveryRecord): Promise<void> {
		const key = recordKey(record);
		const value = stringifyJson(record);
		this.#refuseWhenClosed();
		this.#own.set(key, value);
		const backoff = new Backoff(RETRY_MS.first, RETRY_MS.max);
		const deadline = performance.now() + PATIENCE_MS;
		for (;;) {
			try {
				await this.#enqueue(async () => {
					if (this.#own.get(key) === value) await this.#client.put(key, value, this.instanceId);
				});
				return;
			} catch (error) {
				const later = isLeaseGone(error) || this.#client.isTransient(error);
				if (isLeaseGone(error)) this.#lease.check(true);
				else if (later) this.#report.failed(`writing ${key}`, error);
				if (!later || performance.now() > deadline || this.#closing.signal.aborted) {
					if (this.#own.get(key) === value) this.#own.delete(key);
					throw unavailable(`discovery record ${key} cannot be written to ${this.#client.endpoint}`, error);
				}
			}
			await this.#wait(backoff.next());
		}
	}

	async delete(record: DiscoveryRecord): Promise<void> {
		const key = recordKey(record);
		if (this.#own.delete(key)) await this.#deleteKeys([key]);
	}

	async deleteOwn(): Promise<void> {
		const keys = [...this.#own.keys()];
		this.#own.clear();
		if (keys.length > 0) await this.#deleteKeys(keys);
	}

	async list(bucket: Bucket): Promise<DiscoveryRecord[]> {
		this.#refuseWhenClosed();
		const followed = this.#buckets.get(bucket);
		if (followed?.open === true && this.#report.away) return followed.records();
		try {
			const { entries } = await this.#client.range(`${bucket}/`);
			const view = new RecordView(this.#log);
			for (const { key, value } of entries) view.put(key, value);
			return view.records();
		} catch (error) {
			if (followed?.open === true) return followed.records();
			throw unavailable(`${bucket} cannot be listed at etcd, ${this.#client.endpoint}`, error);
		}
	}

	async watch(bucket: Bucket, onEvent: (event: DiscoveryEvent) => void): Promise<Watch> {
		this.#refuseWhenClosed();
		let followed = this.#buckets.get(bucket);
		if (followed === undefined) {
			followed = new EtcdBucket({
				bucket,
				client: this.#client,
				report: this.#report,
				log: this.#log,
				keepMissingMs: this.#keepMissingMs,
				onReconnect: () => this.#lease.check(),
			});
			this.#buckets.set(bucket, followed);
		}
		const used = followed;
		return await used.watch(onEvent, PATIENCE_MS, () => {
			used.close();
			if (this.#buckets.get(bucket) === used) this.#buckets.delete(bucket);
		});
	}

	close(): Promise<void> {
		this.#closed ??= this.#leave();
		return this.#closed;
	}

	async #leave(): Promise<void> {
		this.#closing.abort();
		this.#own.clear();
		for (const bucket of this.#buckets.values()) bucket.close();
		this.#buckets.clear();
		const left = Promise.all([this.#lease.close(), this.#writing])
			.then(() => this.#client.revokeLease(this.instanceId))
			.catch((error: unknown) => {
				if (!isLeaseGone(error)) {
					this.#log.warn("the etcd lease could not be revoked; it runs out by itself", { error: errorText(error) });
				}
			});
		await within(LEAVE_TIMEOUT_MS, left);
		this.#client.close();
	}

	/** One write at a time, so that a record's last state is what stays. */
	#enqueue(work: () => Promise<void>): Promise<void> {
		const done = this.#writing.then(work);
		this.#writing = done.catch(() => {});
		return done;
	}

	/** Keys that cannot be deleted now are deleted when etcd is back, or go with the lease. */
	async #deleteKeys(keys: readonly string[]): Promise<void> {
		if (this.#report.away) return;
		try {
			await this.#enqueue(async () => {
				if (!this.#report.away) await this.#client.delete(keys.filter((key) => !this.#own.has(key)));
			});
		} catch (error) {
			this.#report.failed("deleting records", error);
			this.#lease.check();
		}
	}

	/** Writes what is missing on the lease and deletes what should not hang on it any more. */
	async #reconcile(): Promise<void> {
		const { ttlSeconds, keys } = await this.#client.leaseKeys(this.instanceId);
		if (ttlSeconds < 0) throw new Error("requested lease not found");
		for (const [key, value] of [...this.#own]) {
			if (keys.has(key) || this.#own.get(key) !== value) continue;
			this.#log.info("discovery record is written again", { key });
			await this.#client.put(key, value, this.instanceId);
		}
		const left = [...keys].filter((key) => !this.#own.has(key));
		if (left.length > 0) await this.#client.delete(left);
	}

	#refuseWhenClosed(): void {
		if (this.#closing.signal.aborted) throw new DynamoError("Unavailable", "discovery is closed");
	}

	#wait(ms: number): Promise<void> {
		const pause = new Pause();
		const stop = () => pause.cutShort();
		this.#closing.signal.addEventListener("abort", stop, { once: true });
		return pause.wait(ms).finally(() => this.#closing.signal.removeEventListener("abort", stop));
	}
}

/** The process' first lease. An etcd that is not there yet is told once, with what to do, and waited for. */
async function firstLease(client: EtcdClient, name: string, options: EtcdDiscoveryOptions): Promise<bigint> {
	const { config, log, signal } = options;
	const deadline = performance.now() + config.startupTimeoutMs;
	const backoff = new Backoff(STARTUP_RETRY_MS.first, STARTUP_RETRY_MS.max);
	const cures = `start it (docker compose -f deploy/docker-compose.yml up -d etcd), or set ${ENV.DYN_DISCOVERY_BACKEND}=file for every process`;
	for (let told = false; ; told = true) {
		let problem: string;
		try {
			return await client.grantLease(config.leaseTtlSeconds);
		} catch (error) {
			problem = errorText(error);
			if (isRefusal(error)) {
				throw unavailable(
					`${name} refuses this process (see ${ENV.ETCD_AUTH_USERNAME}, ${ENV.ETCD_AUTH_PASSWORD})`,
					error,
				);
			}
		}
		const leftMs = deadline - performance.now();
		if (leftMs <= 0) throw unavailable(`${name} cannot be reached: ${cures}`, new Error(problem));
		if (signal?.aborted === true) throw new DynamoError("Cancelled", "stopped while waiting for etcd");
		if (!told) {
			log.warn(`${name} cannot be reached: ${cures}. It is tried for ${Math.ceil(leftMs / 1000)} s`, {
				error: problem,
			});
		}
		await waitFor(Math.min(leftMs, backoff.next()), signal);
	}
}

/** Unlike other waits, this one keeps the process alive: nothing else does yet. */
function waitFor(ms: number, signal: AbortSignal | undefined): Promise<void> {
	return new Promise((resolve) => {
		const end = (): void => {
			clearTimeout(timer);
			signal?.removeEventListener("abort", end);
			resolve();
		};
		const timer = setTimeout(end, ms);
		signal?.addEventListener("abort", end, { once: true });
	});
}

async function within(ms: number, work: Promise<unknown>): Promise<void> {
	let timer: NodeJS.Timeout | undefined;
	const late = new Promise<void>((resolve) => {
		timer = setTimeout(resolve, ms);
	});
	await Promise.race([work, late]);
	clearTimeout(timer);
}

function unavailable(text: string, cause: unknown): DynamoError {
	const message = `${text}: ${errorText(cause)}`;
	return new DynamoError("Unavailable", message, { cause, publicMessage: message });
}
