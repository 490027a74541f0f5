// SPDX-License-Identifier: Apache-2.0
import { mkdir, open, rm, stat, utimes } from "node:fs/promises";
import { dirname } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

/** A lock whose owner has not touched it for so long is of a dead process. */
const STALE_MS = 15_000;
const TOUCH_MS = 3_000;

export interface FileLockOptions {
	readonly signal?: AbortSignal | undefined;
	/** Called once when another process holds the lock. */
	onWait?(): void;
	/** Between two looks at a held lock, milliseconds; default 200. */
	readonly pollMs?: number;
}

/**
 * Runs `work` while holding a lock file, so that two processes do not write the same download. Works across hosts
 * that share the folder, because a live owner shows in the file's time and not in a process id.
 * @throws what `work` throws; AbortError when `signal` is aborted while waiting.
 */
export async function withFileLock<T>(path: string, options: FileLockOptions, work: () => Promise<T>): Promise<T> {
	await mkdir(dirname(path), { recursive: true });
	let told = false;
	while (!(await tryCreate(path))) {
		if (!told) options.onWait?.();
		told = true;
		if (await isStale(path)) await rm(path, { force: true });
		else await sleep(options.pollMs ?? 200, undefined, { signal: options.signal });
	}
	const touch = setInterval(() => void utimes(path, new Date(), new Date()).catch(() => {}), TOUCH_MS);
	touch.unref();
	try {
		return await work();
	} finally {
		clearInterval(touch);
		await rm(path, { force: true });
	}
}

async function tryCreate(path: string): Promise<boolean> {
	try {
		const file = await open(path, "wx");
		await file.writeFile(`${process.pid}\n`);
		await file.close();
		return true;
	} catch (error) {
		if ((error as NodeJS.ErrnoException).code === "EEXIST") return false;
		throw error;
	}
}

async function isStale(path: string): Promise<boolean> {
	try {
		return Date.now() - (await stat(path)).mtimeMs > STALE_MS;
	} catch {
		return false;
	}
}
