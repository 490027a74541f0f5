// SPDX-License-Identifier: Apache-2.0
// Memory that two processes of one machine share: files in /dev/shm that nobody else can open or guess, and that have no
// name any more as soon as both sides have them open.
import { createHash, randomBytes } from "node:crypto";
import { constants, readFileSync, statSync } from "node:fs";
import { type FileHandle, open, readdir, stat, unlink } from "node:fs/promises";
import { join } from "node:path";

const FOLDER = "/dev/shm";
const PREFIX = "dynamo-kv-";
const NAME = /^dynamo-kv-[0-9a-f]{32}$/;
/** A file older than this belongs to a process that was killed: names live for moments. Milliseconds. */
const STALE_MS = 60_000;
export const NONCE_BYTES = 16;

/** Names the memory that this process shares with others; undefined where there is none. */
export function sharedMemoryId(): string | undefined {
	try {
		const boot = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
		// The device number tells mounts of the same machine apart: containers have one of their own.
		const { dev, ino } = statSync(FOLDER);
		return createHash("sha256").update(`${boot} ${dev} ${ino} ${process.getuid?.()}`).digest("hex").slice(0, 32);
	} catch {
		return undefined;
	}
}

/** The side that writes. */
export class SharedSegment {
	readonly name: string;
	/** Whoever finds it at the beginning of the file has the right one. */
	readonly nonce: Buffer;
	readonly file: FileHandle;
	#named = true;

	private constructor(name: string, nonce: Buffer, file: FileHandle) {
		this.name = name;
		this.nonce = nonce;
		this.file = file;
	}

	/** @throws Error where there is no shared memory. */
	static async create(): Promise<SharedSegment> {
		const name = PREFIX + randomBytes(16).toString("hex");
		const nonce = randomBytes(NONCE_BYTES);
		const file = await open(join(FOLDER, name), "wx+", 0o600);
		const segment = new SharedSegment(name, nonce, file);
		try {
			await file.write(nonce, 0, NONCE_BYTES, 0);
			return segment;
		} catch (error) {
			await segment.close();
			throw error;
		}
	}

	/** Takes its name away: from now on only those that have it open have it. Idempotent. */
	async unlink(): Promise<void> {
		if (!this.#named) return;
		this.#named = false;
		await unlink(join(FOLDER, this.name)).catch(() => {});
	}

	async close(): Promise<void> {
		await this.unlink();
		await this.file.close().catch(() => {});
	}
}

/** The side that reads. @returns undefined when it is not there, or not the one that is meant. */
export async function openSegment(name: string, nonce: Uint8Array): Promise<FileHandle | undefined> {
	if (!NAME.test(name)) return undefined;
	let file: FileHandle | undefined;
	try {
		file = await open(join(FOLDER, name), constants.O_RDONLY | constants.O_NOFOLLOW);
		const found = Buffer.alloc(NONCE_BYTES);
		await file.read(found, 0, NONCE_BYTES, 0);
		if (found.equals(nonce)) return file;
	} catch {
		// Another machine's, or another user's.
	}
	await file?.close().catch(() => {});
	return undefined;
}

/** Removes what processes left behind that were killed between two lines of this file. */
export async function sweepSegments(): Promise<void> {
	const names = await readdir(FOLDER).catch(() => []);
	for (const name of names) {
		if (!NAME.test(name)) continue;
		const path = join(FOLDER, name);
		const stats = await stat(path).catch(() => undefined);
		if (stats !== undefined && Date.now() - stats.mtimeMs > STALE_MS) await unlink(path).catch(() => {});
	}
}
