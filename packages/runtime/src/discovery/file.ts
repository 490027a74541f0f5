// SPDX-License-Identifier: Apache-2.0
import { randomBytes } from "node:crypto";
import { unlinkSync } from "node:fs";
import { mkdir, open, rename, unlink, utimes } from "node:fs/promises";
import { basename, join } from "node:path";
import {
	BUCKETS,
	type Bucket,
	type DiscoveryRecord,
	DynamoError,
	ENV,
	fileNameOfKey,
	recordKey,
	stringifyJson,
} from "@dynamo-ts/protocols/internal";
import type { Logger } from "../observability/logging.js";
import type { Discovery, DiscoveryEvent, Watch } from "./discovery.js";
import { BucketFolder } from "./file-bucket.js";
import { randomInstanceId } from "./mem.js";

export interface FileDiscoveryOptions {
	/** The folder; made if absent. All processes that should find each other use the same. */
	readonly root: string;
	readonly log: Logger;
	/** Milliseconds after which a file that nobody touched is removed; 10,000 unless a test says otherwise. */
	readonly ttlMs?: number;
}

/** A file is stale, and removed by whoever sees it, after this. All processes must agree. */
const TTL_MS = 10_000;

interface OwnFile {
	readonly bucket: Bucket;
	readonly path: string;
	content: string;
}

/**
 * Discovery through a folder: one file per record, kept alive by its modification time. Layout and rules are Dynamo's,
 * so that real processes can share the folder.
 *
 * Every third of the TTL the process touches its own files, writes those again that others removed while it was
 * stalled, and goes through the folders that it has opened: removes stale files and catches what notifications missed.
 */
export class FileDiscovery implements Discovery {
	readonly backend = "file";
	readonly instanceId = randomInstanceId();
	readonly #root: string;
	readonly #ttlMs: number;
	readonly #log: Logger;
	readonly #own = new Map<string, OwnFile>();
	readonly #folders = new Map<Bucket, BucketFolder>();
	#timer: NodeJS.Timeout | undefined;
	#lastTick = performance.now();
	#ticking: Promise<void> | undefined;
	#closed = false;

	private constructor(options: FileDiscoveryOptions) {
		this.#root = options.root;
		this.#ttlMs = options.ttlMs ?? TTL_MS;
		this.#log = options.log;
	}

	/** @throws DynamoError `Unavailable` when the folder cannot be made or written. */
	static async open(options: FileDiscoveryOptions): Promise<FileDiscovery> {
		const discovery = new FileDiscovery(options);
		try {
			await Promise.all(BUCKETS.map((bucket) => mkdir(discovery.#folder(bucket), { recursive: true })));
		} catch (cause) {
			throw unavailable(`discovery folder ${options.root} (set by ${ENV.DYN_FILE_KV}) cannot be made`, cause);
		}
		discovery.#timer = setInterval(() => discovery.#tick(), discovery.#ttlMs / 3);
		discovery.#timer.unref();
		return discovery;
	}

	async put(record: DiscoveryRecord): Promise<void> {
		if (this.#closed) throw new DynamoError("Unavailable", "discovery is closed");
		const key = recordKey(record);
		const { bucket, fileName } = fileNameOfKey(key);
		const file: OwnFile = { bucket, path: join(this.#folder(bucket), fileName), content: stringifyJson(record) };
		this.#own.set(key, file);
		try {
			await this.#write(file);
		} catch (cause) {
			if (this.#own.get(key) === file) this.#own.delete(key);
			throw unavailable(`discovery record ${key} cannot be written to ${file.path}`, cause);
		}
		// Deleted, or all closed, while it was being written: the file must not outlive that.
		if (!this.#own.has(key)) await unlinkQuietly(file.path);
		else this.#folders.get(bucket)?.noticed(fileName);
	}

	async delete(record: DiscoveryRecord): Promise<void> {
		const key = recordKey(record);
		const file = this.#own.get(key);
		if (file === undefined) return;
		this.#own.delete(key);
		await unlinkQuietly(file.path);
		this.#folders.get(file.bucket)?.noticed(fileNameOfKey(key).fileName);
	}

	async deleteOwn(): Promise<void> {
		const files = [...this.#own.values()];
		this.#own.clear();
		await Promise.all(files.map((file) => unlinkQuietly(file.path)));
		for (const { bucket, path } of files) this.#folders.get(bucket)?.noticed(basename(path));
	}

	async list(bucket: Bucket): Promise<DiscoveryRecord[]> {
		const folder = this.#open(bucket);
		await folder.scan(false);
		return folder.records();
	}

	async watch(bucket: Bucket, onEvent: (event: DiscoveryEvent) => void): Promise<Watch> {
		return await this.#open(bucket).watch(onEvent);
	}

	async close(): Promise<void> {
		if (this.#closed) return;
		this.#closed = true;
		clearInterval(this.#timer);
		for (const folder of this.#folders.values()) folder.close();
		await this.#ticking;
		await this.deleteOwn();
	}

	/** Removes this process' files at once; for a process that is about to exit without {@link close}. */
	removeOwnFilesNow(): void {
		this.#closed = true;
		for (const file of this.#own.values()) {
			try {
				unlinkSync(file.path);
			} catch {
				// Gone already, or not removable: it goes stale by itself.
			}
		}
		this.#own.clear();
	}

	#folder(bucket: Bucket): string {
		return join(this.#root, bucket);
	}

	#open(bucket: Bucket): BucketFolder {
		let folder = this.#folders.get(bucket);
		if (folder === undefined) {
			const own = (path: string) => {
				for (const file of this.#own.values()) if (file.path === path) return true;
				return false;
			};
			folder = new BucketFolder(bucket, this.#folder(bucket), this.#ttlMs, own, this.#log);
			this.#folders.set(bucket, folder);
		}
		return folder;
	}

	#tick(): void {
		if (this.#ticking !== undefined || this.#closed) return;
		const now = performance.now();
		// After a stall of this process or of the whole machine the others may not have had the time to touch theirs.
		const stalled = now - this.#lastTick > (this.#ttlMs * 2) / 3;
		this.#lastTick = now;
		this.#ticking = this.#keepAlive(!stalled).finally(() => {
			this.#ticking = undefined;
		});
	}

	async #keepAlive(reap: boolean): Promise<void> {
		for (const [key, file] of this.#own) {
			try {
				const now = new Date();
				await utimes(file.path, now, now);
			} catch (error) {
				if ((error as NodeJS.ErrnoException).code !== "ENOENT") {
					this.#log.warn("discovery record could not be kept alive", { key, error });
					continue;
				}
				if (this.#own.get(key) !== file) continue;
				this.#log.warn("discovery record was removed by another process, probably after a stall; written again", {
					key,
				});
				await this.#write(file).catch((cause) =>
					this.#log.warn("discovery record could not be written again", { key, error: cause }),
				);
				if (this.#own.get(key) !== file) await unlinkQuietly(file.path);
			}
		}
		for (const folder of this.#folders.values()) await folder.scan(reap);
	}

	/** Readers see the whole record or none: it is written under a temporary name, then renamed. */
	async #write(file: OwnFile): Promise<void> {
		const temporary = join(this.#folder(file.bucket), `.tmp_${randomBytes(8).toString("hex")}`);
		let handle: Awaited<ReturnType<typeof open>>;
		try {
			handle = await open(temporary, "wx");
		} catch (error) {
			if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
			await mkdir(this.#folder(file.bucket), { recursive: true });
			handle = await open(temporary, "wx");
		}
		try {
			await handle.writeFile(file.content);
			await handle.close();
			await rename(temporary, file.path);
		} catch (error) {
			await handle.close().catch(() => {});
			await unlinkQuietly(temporary);
			throw error;
		}
	}
}

async function unlinkQuietly(path: string): Promise<void> {
	await unlink(path).catch(() => {});
}

function unavailable(text: string, cause: unknown): DynamoError {
	const why = cause instanceof Error ? cause.message : String(cause);
	return new DynamoError("Unavailable", `${text}: ${why}`, { cause });
}
