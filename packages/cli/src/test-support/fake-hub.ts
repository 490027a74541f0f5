// SPDX-License-Identifier: Apache-2.0
import { createHash } from "node:crypto";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

export interface FakeHubFile {
	readonly path: string;
	readonly data: Buffer;
	/** Listed with a SHA-256, as large files are; else with git's blob id. */
	readonly lfs: boolean;
	/** What the list says instead of the true hash. */
	readonly announcedHash?: string;
}

/** A hub with one model on loopback, which can be told to misbehave. */
export interface FakeHub {
	readonly url: string;
	readonly commit: string;
	/** Requests for file content: path and Range header. */
	readonly downloads: { path: string; range: string | undefined; authorization: string | undefined }[];
	/** Requests for the list of files. */
	lists: number;
	/** Cut the connection after so many bytes, for the next downloads. */
	cutAfter: number[];
	/** Answer the next downloads with the whole file, whatever range is asked for. */
	ignoreRange: boolean;
	/** Token that is asked for; undefined: none. */
	token: string | undefined;
	close(): Promise<void>;
}

export async function startFakeHub(repo: string, files: readonly FakeHubFile[]): Promise<FakeHub> {
	const commit = "0123456789abcdef0123456789abcdef01234567";
	const server = createServer((request, response) => answer(request, response));
	await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
	const hub: FakeHub = {
		url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
		commit,
		downloads: [],
		lists: 0,
		cutAfter: [],
		ignoreRange: false,
		token: undefined,
		close: () =>
			new Promise((resolve) => {
				server.closeAllConnections();
				server.close(() => resolve());
			}),
	};

	function answer(request: IncomingMessage, response: ServerResponse): void {
		const url = new URL(request.url ?? "/", hub.url);
		const { authorization } = request.headers;
		if (hub.token !== undefined && authorization !== `Bearer ${hub.token}`) {
			response.writeHead(401).end();
			return;
		}
		if (url.pathname === `/api/models/${repo}/revision/main`) {
			hub.lists++;
			response.setHeader("content-type", "application/json");
			response.end(JSON.stringify({ sha: commit, siblings: files.map(sibling) }));
			return;
		}
		const prefix = `/${repo}/resolve/${commit}/`;
		const file = files.find(({ path }) => url.pathname === prefix + path);
		if (file === undefined) {
			response.writeHead(404).end();
			return;
		}
		const { range } = request.headers;
		hub.downloads.push({ path: file.path, range, authorization });
		const start = range === undefined || hub.ignoreRange ? 0 : Number(/^bytes=(\d+)-$/.exec(range)?.[1]);
		const body = file.data.subarray(start);
		response.writeHead(start > 0 ? 206 : 200, {
			"content-length": body.length,
			...(start > 0 ? { "content-range": `bytes ${start}-${file.data.length - 1}/${file.data.length}` } : {}),
		});
		const cut = hub.cutAfter.shift();
		if (cut === undefined) response.end(body);
		else response.write(body.subarray(0, cut), () => setImmediate(() => response.destroy()));
	}
	return hub;
}

function sibling(file: FakeHubFile): Record<string, unknown> {
	const size = file.data.length;
	const blobId = createHash("sha1").update(`blob ${size}\0`).update(file.data).digest("hex");
	if (!file.lfs) return { rfilename: file.path, size, blobId: file.announcedHash ?? blobId };
	const sha256 = file.announcedHash ?? createHash("sha256").update(file.data).digest("hex");
	return { rfilename: file.path, size, blobId, lfs: { sha256, size, pointerSize: 135 } };
}
