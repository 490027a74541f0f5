// SPDX-License-Identifier: Apache-2.0
import { randomBytes } from "node:crypto";
import { mkdir, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { basename, isAbsolute, join } from "node:path";
import { fileURLToPath } from "node:url";
import { type CheckedFile, DynamoError, isDynamoError, verifyChecksum } from "@dynamo-ts/protocols/internal";

/** Largest file taken when the card gives no size, bytes. Tokenizers are a few tens of MB at most. */
const DEFAULT_SIZE_CAP = 512 * 1024 * 1024;

export interface ModelFilesOptions {
	/** Folder for fetched files; made when needed. */
	readonly cacheDir: string;
	/** Folder where a file is looked for by its name when its path does not exist here. */
	readonly modelPath: string | undefined;
	/** Longest time for one file, milliseconds. */
	readonly timeoutMs: number;
}

/**
 * Gets the files that model cards refer to. A file is what its BLAKE3 sum says it is, wherever it comes from, so
 * fetched ones are kept in `<cacheDir>/blobs/<sum>` and never fetched again.
 */
export class ModelFiles {
	private readonly options: ModelFilesOptions;

	constructor(options: ModelFilesOptions) {
		this.options = options;
	}

	/**
	 * The checked bytes of a file.
	 * @throws DynamoError `InvalidArgument` for a bad checksum or a source that is not supported, `NotFound` for a
	 * missing file, `Unavailable` when a server does not give it, `Cancelled` after `signal`.
	 */
	async read(file: CheckedFile, signal: AbortSignal): Promise<Buffer> {
		const isUrl = /^https?:\/\//i.test(file.path);
		if (!isUrl) return this.readLocal(file);
		const blob = join(this.options.cacheDir, "blobs", file.checksum.replace(/^blake3:/, ""));
		const cached = await readIfThere(blob);
		if (cached !== undefined) {
			try {
				verifyChecksum(cached, file.checksum);
				return cached;
			} catch {
				// Damaged on disk: fetched anew and replaced below.
				await rm(blob, { force: true });
			}
		}
		const bytes = await this.fetch(file, signal);
		verifyChecksum(bytes, file.checksum);
		await this.keep(blob, bytes);
		return bytes;
	}

	private async readLocal(file: CheckedFile): Promise<Buffer> {
		const path = file.path.startsWith("file://") ? fileURLToPath(file.path) : file.path;
		const tried: string[] = [];
		if (isAbsolute(path)) tried.push(path);
		if (this.options.modelPath !== undefined) tried.push(join(this.options.modelPath, basename(path)));
		for (const candidate of tried) {
			const bytes = await readIfThere(candidate);
			if (bytes === undefined) continue;
			verifyChecksum(bytes, file.checksum);
			return bytes;
		}
		throw new DynamoError(
			"NotFound",
			`model file ${file.path} is not on this host` +
				`${tried.length > 0 ? ` (looked for ${tried.join(" and ")})` : ""}: ` +
				"let the worker serve it (give the worker a system port) or point --model-path at a folder that has it",
		);
	}

	private async fetch(file: CheckedFile, signal: AbortSignal): Promise<Buffer> {
		const cap = file.size ?? DEFAULT_SIZE_CAP;
		const deadline = AbortSignal.any([signal, AbortSignal.timeout(this.options.timeoutMs)]);
		try {
			const response = await fetch(file.path, { signal: deadline, redirect: "follow" });
			if (!response.ok) {
				await response.body?.cancel();
				throw new DynamoError("Unavailable", `GET ${file.path} answered ${response.status}`);
			}
			const chunks: Uint8Array[] = [];
			let size = 0;
			for await (const chunk of response.body ?? []) {
				size += chunk.length;
				if (size > cap) throw new DynamoError("InvalidArgument", `${file.path} is larger than ${cap} bytes`);
				chunks.push(chunk);
			}
			return Buffer.concat(chunks);
		} catch (error) {
			if (isDynamoError(error)) throw error;
			if (signal.aborted) throw new DynamoError("Cancelled", `fetching ${file.path} was given up`);
			const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error;
			const why = deadline.aborted ? `no answer within ${this.options.timeoutMs} ms` : String(cause);
			throw new DynamoError("Unavailable", `cannot fetch ${file.path}: ${why}`, { cause: error });
		}
	}

	/** A full or read-only disk must not keep a model from being served. */
	private async keep(blob: string, bytes: Buffer): Promise<void> {
		const temporary = `${blob}.${randomBytes(8).toString("hex")}.tmp`;
		try {
			await mkdir(join(this.options.cacheDir, "blobs"), { recursive: true });
			await writeFile(temporary, bytes, { flag: "wx" });
			await rename(temporary, blob);
		} catch {
			await rm(temporary, { force: true }).catch(() => {});
		}
	}
}

async function readIfThere(path: string): Promise<Buffer | undefined> {
	try {
		if (!(await stat(path)).isFile()) return undefined;
		return await readFile(path);
	} catch {
		return undefined;
	}
}
