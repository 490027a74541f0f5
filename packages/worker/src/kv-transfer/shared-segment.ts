// SPDX-License-Identifier: Apache-2.0
// Memory that two processes of one machine share: files in /dev/shm that nobody else can open or guess, and that have no
// name any more as soon as both sides have them open.
import { createHash, randomBytes } from "node:crypto";
import { constants, readFileSync, readlinkSync, statSync } from "node:fs";
import { type FileHandle, open, readdir, stat, unlink } from "node:fs/promises";
import { join } from "node:path";

const FOLDER = "/dev/shm";
const PREFIX = "dynamo-kv-";
/** Space of process ids, process id, its start in clock ticks, random bits. */
const NAME = /^dynamo-kv-(\d+)-(\d+)-(\d+)-[0-9a-f]{32}$/;
/** A file older than this belongs to nobody any more, wherever its owner was: names live for moments. Milliseconds. */
const STALE_MS = 60_000;
/** Places of what stands behind the name in `/proc/PID/stat`. */
const STAT = { state: 0, startTime: 19 } as const;
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
		const name = PREFIX + [pidSpace(), process.pid, startTime("self"), randomBytes(16).toString("hex")].join("-");
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

/** Removes what processes left behind that were killed between two lines of this file; what others use is left alone. */
export async function sweepSegments(): Promise<void> {
	const names = await readdir(FOLDER).catch(() => []);
	for (const name of names) {
		const parts = NAME.exec(name);
		if (parts === null) continue;
		const path = join(FOLDER, name);
		const [, space, pid, start] = parts as unknown as [string, string, string, string];
		if ((space === pidSpace() && startTime(pid) !== start) || (await isStale(path))) await unlink(path).catch(() => {});
	}
}

async function isStale(path: string): Promise<boolean> {
	const stats = await stat(path).catch(() => undefined);
	return stats !== undefined && Date.now() - stats.mtimeMs > STALE_MS;
}

/** Tells containers apart that have process ids of their own and share the folder; "0" where that is not known. */
function pidSpace(): string {
	try {
		return /\d+/.exec(readlinkSync("/proc/self/ns/pid"))?.[0] ?? "0";
	} catch {
		return "0";
	}
}

/** When a process began, which tells it from a later one of the same id; "0" when it does not run. */
function startTime(pid: string): string {
	try {
		const text = readFileSync(`/proc/${pid}/stat`, "latin1");
		// The name of the program, in brackets, may contain anything.
		const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
		return /^[ZX]/.test(fields[STAT.state] ?? "") ? "0" : (fields[STAT.startTime] ?? "0");
	} catch {
		return "0";
	}
}
