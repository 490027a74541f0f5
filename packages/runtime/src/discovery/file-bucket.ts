// SPDX-License-Identifier: Apache-2.0
import { type FSWatcher, watch as watchDirectory } from "node:fs";
import { mkdir, readdir, readFile, stat, unlink } from "node:fs/promises";
import { join } from "node:path";
import {
	type Bucket,
	type DiscoveryRecord,
	keyOfFileName,
	parseDiscoveryRecord,
	parseJson,
} from "@dynamo-ts/protocols/internal";
import type { Logger } from "../observability/logging.js";
import type { DiscoveryEvent, Watch } from "./discovery.js";

/** How often a folder is listed when notifications cannot be had. */
const POLL_MS = 500;
/** A record is a few kilobytes; anything beyond this is not one. */
const MAX_RECORD_BYTES = 8 * 1024 * 1024;
const TEMPORARY_PREFIX = ".tmp_";

interface KnownFile {
	readonly key: string;
	/** Changes when the file is replaced, not when it is touched. */
	signature: string;
	text: string;
	/** The last content that could be read; undefined if none yet. */
	record: DiscoveryRecord | undefined;
	/** The last content could not be read; the warning was given. */
	bad: boolean;
}

/**
 * One bucket of the file backend: knows its records, tells watchers about changes, removes stale files.
 *
 * Notifications name the file that changed, so one touched file costs one stat and not a listing; a notification
 * without a name, and every call of {@link scan}, goes through the whole folder.
 */
export class BucketFolder {
	readonly #bucket: Bucket;
	readonly #directory: string;
	readonly #ttlMs: number;
	readonly #isOwn: (path: string) => boolean;
	readonly #log: Logger;
	readonly #known = new Map<string, KnownFile>();
	readonly #watchers = new Set<(event: DiscoveryEvent) => void>();
	readonly #dirty = new Set<string>();
	#dirtyScheduled = false;
	#work: Promise<void> = Promise.resolve();
	#watcher: FSWatcher | undefined;
	#watchedInode: bigint | undefined;
	#poll: NodeJS.Timeout | undefined;
	#closed = false;

	constructor(bucket: Bucket, directory: string, ttlMs: number, isOwn: (path: string) => boolean, log: Logger) {
		this.#bucket = bucket;
		this.#directory = directory;
		this.#ttlMs = ttlMs;
		this.#isOwn = isOwn;
		this.#log = log;
	}

	records(): DiscoveryRecord[] {
		const records: DiscoveryRecord[] = [];
		for (const file of this.#known.values()) if (file.record !== undefined) records.push(file.record);
		return records;
	}

	/** Looks at one file soon. */
	noticed(fileName: string): void {
		if (this.#closed || fileName.startsWith(TEMPORARY_PREFIX)) return;
		this.#dirty.add(fileName);
		if (this.#dirtyScheduled) return;
		this.#dirtyScheduled = true;
		setImmediate(() => {
			this.#dirtyScheduled = false;
			this.#enqueue(async () => {
				const names = [...this.#dirty];
				this.#dirty.clear();
				for (const name of names) await this.#check(name, false);
			});
		});
	}

	/** Goes through the whole folder. `reap`: files that nobody touched within the TTL are removed. */
	scan(reap: boolean): Promise<void> {
		return this.#enqueue(() => this.#scanNow(reap));
	}

	async watch(onEvent: (event: DiscoveryEvent) => void): Promise<Watch> {
		let open = true;
		const deliver = (event: DiscoveryEvent) => {
			if (open) onEvent(event);
		};
		await this.#enqueue(async () => {
			await this.#startNotifications();
			await this.#scanNow(false);
			for (const { key, record } of this.#known.values()) {
				if (record !== undefined) deliver({ type: "put", key, record });
			}
			this.#watchers.add(deliver);
		});
		return {
			close: () => {
				open = false;
				this.#watchers.delete(deliver);
				if (this.#watchers.size === 0) this.#stopNotifications();
			},
		};
	}

	close(): void {
		this.#closed = true;
		this.#watchers.clear();
		this.#stopNotifications();
	}

	/** One thing at a time, so that events of a file come in order. */
	#enqueue(work: () => Promise<void>): Promise<void> {
		const done = this.#work.then(() => (this.#closed ? undefined : work()));
		this.#work = done.catch((error) => {
			this.#log.warn("discovery folder could not be read", { folder: this.#directory, error });
		});
		return this.#work;
	}

	async #scanNow(reap: boolean): Promise<void> {
		let names: string[];
		try {
			names = await readdir(this.#directory);
		} catch (error) {
			if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
			await mkdir(this.#directory, { recursive: true });
			names = [];
		}
		const present = new Set(names);
		for (const name of this.#known.keys()) if (!present.has(name)) this.#gone(name);
		for (const name of names) await this.#check(name, reap);
		if (this.#watchers.size > 0) await this.#startNotifications();
	}

	async #check(name: string, reap: boolean): Promise<void> {
		const path = join(this.#directory, name);
		let info: { mtimeMs: bigint; birthtimeNs: bigint; ino: bigint; size: bigint };
		try {
			info = await stat(path, { bigint: true });
		} catch {
			this.#gone(name);
			return;
		}
		const age = Date.now() - Number(info.mtimeMs);
		if (name.startsWith(TEMPORARY_PREFIX)) {
			// Left behind by a writer that died. A slow writer gets more time than a record.
			if (reap && age > 6 * this.#ttlMs) await unlink(path).catch(() => {});
			return;
		}
		const known = this.#known.get(name);
		if (age > this.#ttlMs && !this.#isOwn(path)) {
			if (reap) {
				await unlink(path).catch(() => {});
				this.#gone(name);
				return;
			}
			if (known === undefined) return;
		}
		const key = known?.key ?? keyOfFileName(this.#bucket, name);
		// A bad file is looked at again whenever it was written to; a good one only when it was replaced.
		const replaced = `${info.ino}:${info.size}:${info.birthtimeNs}`;
		const signature = known?.bad === true ? `${replaced}:${info.mtimeMs}` : replaced;
		if (key === undefined || known?.signature === signature) return;
		await this.#read(name, path, key, replaced, info);
	}

	async #read(
		name: string,
		path: string,
		key: string,
		replaced: string,
		info: { size: bigint; mtimeMs: bigint },
	): Promise<void> {
		let text = "";
		let record: DiscoveryRecord | undefined;
		let problem: unknown;
		try {
			if (info.size > MAX_RECORD_BYTES) throw new Error(`${info.size} bytes are too many for a record`);
			text = await readFile(path, "utf8");
			record = parseDiscoveryRecord(parseJson(text));
		} catch (error) {
			if ((error as NodeJS.ErrnoException).code === "ENOENT") {
				this.#gone(name);
				return;
			}
			problem = error;
		}
		const known = this.#known.get(name);
		if (record === undefined) {
			// The last good content stays valid until the file goes or becomes good again.
			const signature = `${replaced}:${info.mtimeMs}`;
			if (known === undefined) this.#known.set(name, { key, signature, text, record: undefined, bad: true });
			if (known?.bad !== true || known.text !== text) {
				this.#log.warn("Failed to parse discovery record; it is left out", { key, error: problem });
			}
			if (known !== undefined) Object.assign(known, { signature, text, bad: true });
			return;
		}
		const unchanged = known?.record !== undefined && !known.bad && known.text === text;
		this.#known.set(name, { key, signature: replaced, text, record, bad: false });
		if (!unchanged) this.#tell({ type: "put", key, record });
	}

	#gone(name: string): void {
		const known = this.#known.get(name);
		if (known === undefined) return;
		this.#known.delete(name);
		if (known.record !== undefined) this.#tell({ type: "delete", key: known.key });
	}

	#tell(event: DiscoveryEvent): void {
		for (const deliver of this.#watchers) {
			try {
				deliver(event);
			} catch (error) {
				this.#log.error("a discovery watcher failed", { key: event.key, error });
			}
		}
	}

	/** Watches the folder, or polls it when that is impossible; watches anew when the folder was replaced. */
	async #startNotifications(): Promise<void> {
		if (this.#poll !== undefined) return;
		await mkdir(this.#directory, { recursive: true });
		const { ino } = await stat(this.#directory, { bigint: true });
		if (this.#watcher !== undefined && this.#watchedInode === ino) return;
		this.#watcher?.close();
		this.#watcher = undefined;
		if (this.#closed) return;
		try {
			const watcher = watchDirectory(this.#directory, { persistent: false }, (_event, name) => {
				if (name === null) void this.scan(false);
				else this.noticed(name);
			});
			watcher.on("error", (error) => this.#pollInstead(error));
			this.#watcher = watcher;
			this.#watchedInode = ino;
		} catch (error) {
			this.#pollInstead(error);
		}
	}

	#pollInstead(error: unknown): void {
		this.#watcher?.close();
		this.#watcher = undefined;
		if (this.#poll !== undefined || this.#closed) return;
		this.#log.warn("discovery folder cannot be watched; it is listed every 500 ms instead", {
			folder: this.#directory,
			error,
			advice: "raise fs.inotify.max_user_instances and max_user_watches",
		});
		this.#poll = setInterval(() => void this.scan(false), POLL_MS);
		this.#poll.unref();
	}

	#stopNotifications(): void {
		this.#watcher?.close();
		this.#watcher = undefined;
		clearInterval(this.#poll);
		this.#poll = undefined;
	}
}
