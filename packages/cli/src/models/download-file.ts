// SPDX-License-Identifier: Apache-2.0
// One file by HTTP: continues where an earlier attempt stopped, and is not believed before its hash is right.
import { createHash, type Hash } from "node:crypto";
import { createReadStream } from "node:fs";
import { mkdir, open, rename, rm, stat, truncate } from "node:fs/promises";
import { dirname } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { CliError } from "../cli-error.js";

/** How the content is known: SHA-256 of the bytes, or the id that git gives them as a blob (SHA-1). */
export type ContentHash = { readonly kind: "sha256" | "git-sha1"; readonly hex: string };

export interface DownloadOptions {
	readonly url: string;
	readonly headers: Readonly<Record<string, string>>;
	/** Bytes. */
	readonly size: number;
	readonly hash: ContentHash;
	/** Where the file is to be; while it grows it is `${target}.incomplete`. */
	readonly target: string;
	readonly signal?: AbortSignal | undefined;
	/** Bytes that are there so far. */
	onProgress?(have: number): void;
	/** Longest silence of the server, milliseconds; default 30 s. */
	readonly idleTimeoutMs?: number;
	/** Attempts without any progress before giving up; default 4. */
	readonly attempts?: number;
	/** Pause after the first failed attempt, doubled each time, milliseconds; default 500. */
	readonly retryPauseMs?: number;
}

/** An answer of the server that another attempt will not change. */
export class HttpStatusError extends Error {
	readonly status: number;
	constructor(status: number, url: string) {
		super(`${new URL(url).host} answered ${status}`);
		this.name = "HttpStatusError";
		this.status = status;
	}
}

/**
 * Fetches a file.
 * @throws HttpStatusError for 4xx; CliError when the content is not what was announced, or after too many attempts.
 */
export async function downloadFile(options: DownloadOptions): Promise<void> {
	const partial = `${options.target}.incomplete`;
	await mkdir(dirname(options.target), { recursive: true });
	const attempts = options.attempts ?? 4;
	let failures = 0;
	for (;;) {
		const had = await sizeOf(partial);
		try {
			await attempt(options, partial);
			break;
		} catch (error) {
			if (options.signal?.aborted) throw options.signal.reason;
			if (error instanceof HttpStatusError && error.status < 500 && error.status !== 429) throw error;
			if (error instanceof CliError || isDiskError(error)) throw error;
			failures = (await sizeOf(partial)) > had ? 1 : failures + 1;
			if (failures >= attempts) {
				throw new CliError(
					`downloading ${options.url} failed ${failures} times (${causeOf(error)}); what is there is kept, run the command again to go on`,
					1,
					{ cause: error },
				);
			}
			await sleep((options.retryPauseMs ?? 500) * 2 ** (failures - 1), undefined, { signal: options.signal });
		}
	}
	await rename(partial, options.target);
}

async function attempt(options: DownloadOptions, partial: string): Promise<void> {
	let have = await sizeOf(partial);
	if (have > options.size) {
		await truncate(partial, 0);
		have = 0;
	}
	const resumed = have > 0;
	let hash = await hashSoFar(options, partial, have);
	if (have < options.size || options.size === 0) {
		const idle = new AbortController();
		let timer = setTimeout(() => idle.abort(), options.idleTimeoutMs ?? 30_000);
		try {
			const response = await fetch(options.url, {
				headers: { ...options.headers, ...(have > 0 ? { range: `bytes=${have}-` } : {}) },
				signal: options.signal === undefined ? idle.signal : AbortSignal.any([options.signal, idle.signal]),
			});
			if (!response.ok) {
				await response.body?.cancel();
				throw new HttpStatusError(response.status, options.url);
			}
			if (have > 0 && !continuesAt(response, have)) {
				// The server sent the whole file: what is there cannot be trusted to fit to it.
				have = 0;
				hash = newHash(options);
			}
			const file = await open(partial, have > 0 ? "r+" : "w");
			try {
				let at = have;
				for await (const chunk of response.body ?? []) {
					clearTimeout(timer);
					timer = setTimeout(() => idle.abort(), options.idleTimeoutMs ?? 30_000);
					if (at + chunk.length > options.size) {
						throw new Error(`the server sent more than the ${options.size} bytes that it announced`);
					}
					hash.update(chunk);
					await file.write(chunk, 0, chunk.length, at);
					at += chunk.length;
					options.onProgress?.(at);
				}
				have = at;
			} finally {
				await file.close();
			}
			if (have < options.size) throw new Error(`the connection ended after ${have} of ${options.size} bytes`);
		} catch (error) {
			if (idle.signal.aborted) throw new Error(`nothing came for ${(options.idleTimeoutMs ?? 30_000) / 1000} s`);
			throw error;
		} finally {
			clearTimeout(timer);
		}
	}
	const hex = hash.digest("hex");
	if (hex === options.hash.hex) return;
	await rm(partial, { force: true });
	if (resumed) {
		// The kept part may be of another version of the file: once from the start.
		await attempt(options, partial);
		return;
	}
	throw new CliError(
		`${options.url} has the checksum ${hex}, but ${options.hash.hex} was announced; the download was thrown away, try again (a proxy may have changed it)`,
	);
}

function continuesAt(response: Response, offset: number): boolean {
	return response.status === 206 && (response.headers.get("content-range") ?? "").startsWith(`bytes ${offset}-`);
}

function newHash(options: DownloadOptions): Hash {
	if (options.hash.kind === "sha256") return createHash("sha256");
	return createHash("sha1").update(`blob ${options.size}\0`);
}

async function hashSoFar(options: DownloadOptions, partial: string, have: number): Promise<Hash> {
	const hash = newHash(options);
	if (have === 0) return hash;
	for await (const chunk of createReadStream(partial)) hash.update(chunk as Buffer);
	options.onProgress?.(have);
	return hash;
}

async function sizeOf(path: string): Promise<number> {
	try {
		return (await stat(path)).size;
	} catch {
		return 0;
	}
}

function isDiskError(error: unknown): boolean {
	return ["ENOSPC", "EACCES", "EROFS", "EDQUOT"].includes((error as NodeJS.ErrnoException).code ?? "");
}

/** The text of the innermost error: fetch says "fetch failed" and keeps the reason in its cause. */
export function causeOf(error: unknown): string {
	let inner = error;
	while (inner instanceof Error && inner.cause instanceof Error) inner = inner.cause;
	if (inner instanceof AggregateError && inner.errors[0] instanceof Error) inner = inner.errors[0];
	return inner instanceof Error ? inner.message : String(inner);
}
