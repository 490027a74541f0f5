// SPDX-License-Identifier: Apache-2.0
// The few etcd calls that discovery needs, each with a deadline, over one of several endpoints at a time.
import { readFile } from "node:fs/promises";
import { DynamoError, ENV } from "@dynamo-ts/protocols/internal";
import type { Etcd3, IEvent, ITxnRequest } from "etcd3";
import { errorText } from "../connection-report.js";
import type { EtcdConfig } from "./etcd-config.js";

const CALL_TIMEOUT_MS = 5000;
/** Keys of one page of a listing, and of one transaction; etcd's default limit of operations is 128. */
const PAGE_KEYS = 1000;
const TRANSACTION_KEYS = 100;
const MAX_MESSAGE_BYTES = 256 * 1024 * 1024;

/** Numbers of etcd's enumerations CompareResult and CompareTarget. */
const COMPARE = { equal: 0, version: 0 } as const;

/** A key as etcd has it. */
export interface EtcdEntry {
	readonly key: string;
	readonly value: string;
	/** The store's revision at which it was last written. */
	readonly modRevision: bigint;
}

/** What a watch stream tells. */
export interface EtcdWatchHandler {
	/** The server has taken the watch. */
	onCreated(): void;
	onPut(entry: EtcdEntry): void;
	onDelete(key: string, modRevision: bigint): void;
	/** Once, when the stream is over by itself; nothing comes after it. */
	onEnd(why: string): void;
}

/** A watch stream that runs. */
export interface EtcdWatchStream {
	/** Ends it; no call comes after that. */
	cancel(): void;
}

interface EtcdModule {
	readonly Etcd3: typeof Etcd3;
	readonly isRecoverableError: (error: Error) => boolean;
}

/**
 * Talks to the etcd endpoint that worked last and goes on to the next when that one fails. etcd3's own retries, circuit
 * breakers, leases and watchers are not used: they hide a store that came back empty.
 */
export class EtcdClient {
	readonly endpoints: readonly string[];
	readonly #clients: readonly Etcd3[];
	readonly #isRecoverable: (error: Error) => boolean;
	readonly #streams = new Set<{ host: number; lost(why: string): void }>();
	#host: number;
	#closed = false;

	private constructor(module: EtcdModule, clients: readonly Etcd3[], endpoints: readonly string[]) {
		this.endpoints = endpoints;
		this.#clients = clients;
		this.#isRecoverable = module.isRecoverableError;
		// Processes of a fleet spread over the members.
		this.#host = Math.floor(Math.random() * clients.length);
	}

	/**
	 * Reads the certificates; connections are made with the first call.
	 * @throws DynamoError `InvalidArgument` for a file that cannot be read.
	 */
	static async create(config: EtcdConfig): Promise<EtcdClient> {
		const loaded = (await import("etcd3")) as unknown as EtcdModule & { default?: EtcdModule };
		const module = loaded.default ?? loaded;
		const secure = config.endpoints.some((url) => url.startsWith("https:"));
		const [ca, cert, key] = await Promise.all([
			pem(ENV.ETCD_AUTH_CA, config.ca),
			pem(ENV.ETCD_AUTH_CLIENT_CERT, config.clientCert),
			pem(ENV.ETCD_AUTH_CLIENT_KEY, config.clientKey),
		]);
		const tls = secure && (ca !== undefined || cert !== undefined);
		const passOn = { execute: (run: (context: object) => unknown) => Promise.resolve().then(() => run({})) };
		const clients = config.endpoints.map(
			(endpoint) =>
				new module.Etcd3({
					hosts: endpoint,
					...(tls
						? {
								credentials: {
									rootCertificate: ca as Buffer,
									...(cert !== undefined && key !== undefined ? { certChain: cert, privateKey: key } : {}),
								},
							}
						: {}),
					...(config.username !== undefined && config.password !== undefined
						? { auth: { username: config.username, password: config.password } }
						: {}),
					defaultCallOptions: ({ isStream }) => (isStream ? {} : { deadline: Date.now() + CALL_TIMEOUT_MS }),
					faultHandling: { host: () => passOn as never, global: passOn as never },
					grpcOptions: {
						"grpc.keepalive_time_ms": config.keepAliveIntervalMs,
						"grpc.keepalive_timeout_ms": config.keepAliveTimeoutMs,
						"grpc.keepalive_permit_without_calls": 0,
						"grpc.initial_reconnect_backoff_ms": 100,
						"grpc.min_reconnect_backoff_ms": 100,
						"grpc.max_reconnect_backoff_ms": 1000,
						"grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
						"grpc.use_local_subchannel_pool": 1,
					},
				}),
		);
		return new EtcdClient(module, clients, config.endpoints);
	}

	/** The endpoint that the next call goes to. */
	get endpoint(): string {
		return this.endpoints[this.#host] as string;
	}

	/** Whether a call that failed may succeed later: etcd was not reached, or could not answer in time. */
	isTransient(error: unknown): boolean {
		if (!(error instanceof Error) || !this.#isRecoverable(error)) return false;
		// The code of this one says that a resource is exhausted; it stays so.
		return !/message larger than max/.test(error.message);
	}

	/** Grants a lease; id 0: etcd chooses. @returns its id. */
	async grantLease(ttlSeconds: number, id = 0n): Promise<bigint> {
		const answer = await this.#call((etcd) => etcd.leaseClient.leaseGrant({ TTL: ttlSeconds, ID: String(id) }));
		return BigInt(answer.ID);
	}

	/** Keeps a lease alive. @returns the seconds it has from now on; 0 or less: there is no such lease. */
	async renewLease(id: bigint, timeoutMs: number): Promise<number> {
		const deadline = Date.now() + timeoutMs;
		return this.#call(async (etcd) => {
			const stream = await etcd.leaseClient.leaseKeepAlive({ deadline });
			try {
				return await new Promise<number>((resolve, reject) => {
					stream.on("data", ({ TTL }) => resolve(Number(TTL)));
					stream.on("error", reject);
					stream.on("end", () => reject(new Error("etcd ended the stream without an answer")));
					stream.write({ ID: String(id) });
				});
			} finally {
				cancelQuietly(stream);
			}
		});
	}

	/** The seconds that a lease has left (-1: there is none) and the keys that hang on it. */
	async leaseKeys(id: bigint): Promise<{ ttlSeconds: number; keys: Set<string> }> {
		const answer = await this.#call((etcd) => etcd.leaseClient.leaseTimeToLive({ ID: String(id), keys: true }));
		return { ttlSeconds: Number(answer.TTL), keys: new Set(answer.keys.map((key) => key.toString("utf8"))) };
	}

	/** Ends a lease and deletes the keys that hang on it. */
	async revokeLease(id: bigint): Promise<void> {
		await this.#call((etcd) => etcd.leaseClient.leaseRevoke({ ID: String(id) }));
	}

	/** Writes a key: creates it as Dynamo does, in a transaction that succeeds if it is not there; replaces it if it is. */
	async put(key: string, value: string, lease: bigint): Promise<void> {
		const put = { key: Buffer.from(key), value: Buffer.from(value), lease: String(lease) };
		const transaction: ITxnRequest = {
			compare: [{ result: COMPARE.equal, target: COMPARE.version, key: put.key, version: 0 }],
			success: [{ request_put: put }],
			failure: [{ request_range: { key: put.key } }],
		};
		const answer = await this.#call((etcd) => etcd.kv.txn(transaction));
		if (answer.succeeded) return;
		const found = answer.responses[0]?.response_range?.kvs[0];
		if (found?.value.equals(put.value) === true && found.lease === put.lease) return;
		await this.#call((etcd) => etcd.kv.put(put));
	}

	/** Deletes keys; those that are not there are no error. */
	async delete(keys: readonly string[]): Promise<void> {
		for (let at = 0; at < keys.length; at += TRANSACTION_KEYS) {
			const success = keys
				.slice(at, at + TRANSACTION_KEYS)
				.map((key) => ({ request_delete_range: { key: Buffer.from(key) } }));
			await this.#call((etcd) => etcd.kv.txn({ success }));
		}
	}

	/** All keys with a prefix at one revision, fetched in pages. */
	async range(prefix: string): Promise<{ revision: bigint; entries: EtcdEntry[] }> {
		const entries: EtcdEntry[] = [];
		const range_end = prefixEnd(prefix);
		let revision = 0n;
		let key = Buffer.from(prefix);
		for (;;) {
			const request = { key, range_end, limit: PAGE_KEYS, revision: String(revision) };
			const answer = await this.#call((etcd) => etcd.kv.range(request));
			if (revision === 0n) revision = BigInt(answer.header.revision);
			for (const kv of answer.kvs) entries.push(entryOf(kv));
			const last = answer.kvs.at(-1);
			if (!answer.more || last === undefined) return { revision, entries };
			key = Buffer.concat([last.key, Buffer.from([0])]);
		}
	}

	/** Follows all changes of keys with a prefix from a revision on. */
	async watch(prefix: string, startRevision: bigint, handler: EtcdWatchHandler): Promise<EtcdWatchStream> {
		const host = this.#host;
		const stream = await (this.#clients[host] as Etcd3).watchClient.watch();
		let open = true;
		const close = (): boolean => {
			const was = open;
			open = false;
			this.#streams.delete(entry);
			cancelQuietly(stream);
			return was;
		};
		const entry = {
			host,
			lost: (why: string) => {
				if (close()) handler.onEnd(why);
			},
		};
		this.#streams.add(entry);
		stream.on("data", (response) => {
			if (!open) return;
			if (response.canceled) {
				entry.lost(response.cancel_reason || `etcd cancelled the watch (compacted at ${response.compact_revision})`);
				return;
			}
			if (response.created) handler.onCreated();
			for (const event of response.events) {
				if (!open) return;
				if (isDelete(event)) handler.onDelete(event.kv.key.toString("utf8"), BigInt(event.kv.mod_revision));
				else handler.onPut(entryOf(event.kv));
			}
		});
		stream.on("error", (error) => {
			if (open && this.isTransient(error)) this.#leaveHost(host, errorText(error));
			entry.lost(errorText(error));
		});
		stream.on("end", () => entry.lost("etcd ended the watch"));
		stream.write({
			create_request: {
				key: Buffer.from(prefix),
				range_end: prefixEnd(prefix),
				start_revision: String(startRevision),
				prev_kv: true,
			},
		});
		if (this.#closed) close();
		return { cancel: () => void close() };
	}

	/** Closes all connections. Idempotent. */
	close(): void {
		this.#closed = true;
		for (const stream of [...this.#streams]) stream.lost("closed");
		for (const client of this.#clients) client.close();
	}

	/** Runs a call at the endpoint that worked last, and at each other one as long as they fail. */
	async #call<T>(run: (etcd: Etcd3) => Promise<T>): Promise<T> {
		for (let tries = 1; ; tries++) {
			const host = this.#host;
			try {
				return await run(this.#clients[host] as Etcd3);
			} catch (error) {
				if (!this.isTransient(error)) throw error;
				this.#leaveHost(host, errorText(error));
				if (tries >= this.#clients.length || this.#closed) throw error;
			}
		}
	}

	/** An endpoint that failed may be cut off from the others and silent: what is watched there is watched elsewhere. */
	#leaveHost(host: number, why: string): void {
		if (this.#clients.length === 1) return;
		if (this.#host === host) this.#host = (host + 1) % this.#clients.length;
		for (const stream of [...this.#streams]) if (stream.host === host) stream.lost(why);
	}
}

/** The lease that a call named is not there (expired, revoked, or the store is another one). */
export function isLeaseGone(error: unknown): boolean {
	return /requested lease not found/i.test(errorText(error));
}

/** A lease with the id that was asked for is there already. */
export function isLeaseThere(error: unknown): boolean {
	return /lease already exists/i.test(errorText(error));
}

/** etcd is there and refuses us; trying again will not help. */
export function isRefusal(error: unknown): boolean {
	return /authentication (?:failed|is not enabled)|invalid user name or password|user name is empty|permission denied/i.test(
		errorText(error),
	);
}

/** The end of the range of all keys with a prefix: the prefix with its last byte raised by one. */
function prefixEnd(prefix: string): Buffer {
	const end = Buffer.from(prefix);
	end[end.length - 1] = (end[end.length - 1] as number) + 1;
	return end;
}

function entryOf(kv: { key: Buffer; value: Buffer; mod_revision: string }): EtcdEntry {
	return { key: kv.key.toString("utf8"), value: kv.value.toString("utf8"), modRevision: BigInt(kv.mod_revision) };
}

/**
 * Cancels a stream of etcd3 on purpose. The library takes an error of a stream that can still be written to, a
 * cancellation too, for a failure of the host, and closes the connections of all its services.
 */
function cancelQuietly(stream: { end(): void; cancel(): void }): void {
	stream.end();
	stream.cancel();
}

function isDelete(event: IEvent): boolean {
	return String(event.type).toUpperCase() === "DELETE";
}

/** A variable holds the path of a PEM file, or the text itself. */
async function pem(variable: string, value: string | undefined): Promise<Buffer | undefined> {
	if (value === undefined) return undefined;
	if (value.trimStart().startsWith("-----BEGIN")) return Buffer.from(value);
	try {
		return await readFile(value);
	} catch (cause) {
		const text = `${variable}=${value} cannot be read: ${errorText(cause)}`;
		throw new DynamoError("InvalidArgument", text, { publicMessage: text, cause });
	}
}
