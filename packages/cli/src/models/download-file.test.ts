// SPDX-License-Identifier: Apache-2.0
import { createHash, randomBytes } from "node:crypto";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer, type RequestListener, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { type DownloadOptions, downloadFile, HttpStatusError } from "./download-file.js";

const DATA = randomBytes(50_000);
let folder: string;
let server: Server | undefined;

beforeEach(() => {
	folder = mkdtempSync(join(tmpdir(), "download-test-"));
});
afterEach(async () => {
	server?.closeAllConnections();
	await new Promise((resolve) => (server === undefined ? resolve(undefined) : server.close(resolve)));
	rmSync(folder, { recursive: true, force: true });
});

async function optionsFor(listener: RequestListener): Promise<DownloadOptions> {
	server = createServer(listener);
	await new Promise<void>((resolve) => server!.listen(0, "127.0.0.1", resolve));
	return {
		url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/file`,
		headers: {},
		size: DATA.length,
		hash: { kind: "sha256", hex: createHash("sha256").update(DATA).digest("hex") },
		target: join(folder, "file"),
		retryPauseMs: 1,
	};
}

test("a server that always cuts without a byte is given up, with the reason", async () => {
	let requests = 0;
	const options = await optionsFor((_request, response) => {
		requests++;
		response.destroy();
	});
	await expect(downloadFile({ ...options, attempts: 3 })).rejects.toThrow(/failed 3 times/);
	expect(requests).toBe(3);
});

test("many cuts are no matter as long as bytes come", async () => {
	let requests = 0;
	const options = await optionsFor((request, response) => {
		requests++;
		const start = Number(/=(\d+)-/.exec(request.headers.range ?? "")?.[1] ?? 0);
		response.writeHead(start > 0 ? 206 : 200, { "content-range": `bytes ${start}-${DATA.length - 1}/${DATA.length}` });
		response.write(DATA.subarray(start, start + 5000), () => {
			if (start + 5000 >= DATA.length) response.end();
			// A little later: what arrives together with the end of a connection is lost with it.
			else setTimeout(() => response.destroy(), 20);
		});
	});
	await downloadFile(options);
	expect(readFileSync(options.target)).toEqual(DATA);
	expect(requests).toBeGreaterThanOrEqual(10);
});

test("a server that falls silent is tried again", async () => {
	let requests = 0;
	const options = await optionsFor((_request, response) => {
		if (++requests === 1) response.write(DATA.subarray(0, 10));
		else response.end(DATA);
	});
	await downloadFile({ ...options, idleTimeoutMs: 100 });
	expect(readFileSync(options.target)).toEqual(DATA);
});

test("a status of 404 is not tried again", async () => {
	let requests = 0;
	const options = await optionsFor((_request, response) => {
		requests++;
		response.writeHead(404).end();
	});
	await expect(downloadFile(options)).rejects.toThrow(HttpStatusError);
	expect(requests).toBe(1);
});

test("more bytes than announced are refused", async () => {
	const options = await optionsFor((_request, response) => void response.end(Buffer.concat([DATA, DATA])));
	await expect(downloadFile({ ...options, attempts: 1 })).rejects.toThrow(/more than/);
	expect(existsSync(options.target)).toBe(false);
});

test("an aborted download leaves what it has", async () => {
	const controller = new AbortController();
	const options = await optionsFor((_request, response) => void response.write(DATA.subarray(0, 1000)));
	const done = downloadFile({ ...options, signal: controller.signal, onProgress: () => controller.abort() });
	await expect(done).rejects.toThrow(/abort/i);
	expect(readFileSync(`${options.target}.incomplete`).length).toBeGreaterThan(0);
	expect(existsSync(options.target)).toBe(false);
});

test("an empty file", async () => {
	const options = await optionsFor((_request, response) => void response.end());
	const hex = createHash("sha1").update("blob 0\0").digest("hex");
	await downloadFile({ ...options, size: 0, hash: { kind: "git-sha1", hex } });
	expect(readFileSync(options.target).length).toBe(0);
});
