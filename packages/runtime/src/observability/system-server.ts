// SPDX-License-Identifier: Apache-2.0
import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { ENV } from "@dynamo-ts/protocols/internal";
import { advertisedHost, formatHostPort, listenTcp } from "../net/listen.js";
import type { Health } from "./health.js";
import type { Logger } from "./logging.js";
import { METRICS_CONTENT_TYPE, type MetricsRegistry } from "./metrics.js";

/** The HTTP server on the system port; {@link Health} decides what it answers. */
export interface SystemServer {
	/** `http://host:port` as others reach it. */
	readonly url: string;
	readonly port: number;
	/**
	 * Serves a file at `/v1/metadata/{path}` as `application/octet-stream`.
	 * @param path `{ns}/{component}/{endpoint}/{slug}/{suffix}/{file}`.
	 * @returns the URL to put into a model card.
	 */
	addMetadataFile(path: string, file: string): string;
	removeMetadataFile(path: string): void;
	close(): Promise<void>;
}

export interface SystemServerOptions {
	readonly host: string;
	/** 0: any. */
	readonly port: number;
	readonly healthPath: string;
	readonly livePath: string;
	readonly health: Health;
	readonly metrics: MetricsRegistry;
	readonly log: Logger;
}

const METADATA_PREFIX = "/v1/metadata/";
/** Dynamo's system server says this of every answer, JSON bodies too. */
const TEXT = "text/plain; charset=utf-8";

/** @throws DynamoError `Unavailable` when the port cannot be listened on. */
export async function startSystemServer(options: SystemServerOptions): Promise<SystemServer> {
	const files = new Map<string, string>();
	const started = process.hrtime.bigint();
	const server: Server = createServer((request, response) => {
		answer(request, response).catch((error) => {
			options.log.warn("system server request failed", { url: request.url, error });
			if (!response.headersSent) sendText(response, 500, "Internal server error");
			else response.destroy();
		});
	});
	// A bad HTTP message ends its connection, nothing else.
	server.on("clientError", (_error, socket) => socket.destroy());

	async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
		const path = (request.url ?? "/").split("?", 1)[0] as string;
		const reading = request.method === "GET" || request.method === "HEAD";
		if (path.startsWith("/engine/")) {
			const text = { error: "Route not found", message: `Route ${path} not found` };
			return sendText(response, 404, JSON.stringify(text));
		}
		if (path === options.healthPath || path === options.livePath) {
			if (!reading) return refuseMethod(response);
			const { ready } = options.health;
			// A process that is not ready must not be restarted for it: liveness is that this answer comes at all.
			const live = path === options.livePath && path !== options.healthPath;
			return sendText(response, ready || live ? 200 : 503, healthBody(ready));
		}
		if (path === "/metrics") {
			if (!reading) return refuseMethod(response);
			return sendText(response, 200, await options.metrics.scrape(), METRICS_CONTENT_TYPE);
		}
		if (path === "/metadata") {
			if (!reading) return refuseMethod(response);
			return sendText(response, 404, "Discovery metadata not available");
		}
		if (path.startsWith(METADATA_PREFIX)) {
			if (!reading) return refuseMethod(response);
			return await sendFile(request, response, path.slice(METADATA_PREFIX.length));
		}
		sendText(response, 404, "Route not found");
	}

	function healthBody(ready: boolean): string {
		const uptime = process.hrtime.bigint() - started;
		const endpoints: Record<string, string> = {};
		for (const [name, up] of Object.entries(options.health.endpoints())) endpoints[name] = up ? "ready" : "notready";
		return JSON.stringify({
			status: ready ? "ready" : "notready",
			uptime: { secs: Number(uptime / 1_000_000_000n), nanos: Number(uptime % 1_000_000_000n) },
			endpoints,
		});
	}

	async function sendFile(request: IncomingMessage, response: ServerResponse, encoded: string): Promise<void> {
		// Only what was registered, under exactly its name, is ever opened.
		const file = files.get(encoded);
		if (file === undefined) return sendText(response, 404, "Route not found");
		const { size } = await stat(file);
		response.writeHead(200, { "content-type": "application/octet-stream", "content-length": size });
		if (request.method === "HEAD" || size === 0) {
			response.end();
			return;
		}
		const stream = createReadStream(file, { end: size - 1 });
		stream.on("error", (error) => {
			options.log.warn("a model file cannot be read", { file, error });
			response.destroy();
		});
		response.on("close", () => stream.destroy());
		stream.pipe(response);
	}

	const port = await listenTcp(
		server,
		{
			host: options.host,
			port: options.port,
			purpose: "system server",
			variables: { host: ENV.DYN_SYSTEM_HOST, port: ENV.DYN_SYSTEM_PORT },
		},
		options.log,
	);
	const url = `http://${formatHostPort(advertisedHost(options.host), port)}`;
	return {
		url,
		port,
		addMetadataFile(path, file) {
			const encoded = encodePath(path);
			files.set(encoded, file);
			return `${url}${METADATA_PREFIX}${encoded}`;
		},
		removeMetadataFile: (path) => void files.delete(encodePath(path)),
		close: () =>
			new Promise((resolve) => {
				server.close(() => resolve());
				server.closeAllConnections();
			}),
	};
}

function encodePath(path: string): string {
	return path.split("/").map(encodeURIComponent).join("/");
}

function refuseMethod(response: ServerResponse): void {
	response.writeHead(405, { allow: "GET,HEAD", "content-length": 0 });
	response.end();
}

function sendText(response: ServerResponse, status: number, body: string, contentType = TEXT): void {
	response.writeHead(status, { "content-type": contentType, "content-length": Buffer.byteLength(body) });
	// Node leaves the body of an answer to HEAD out by itself.
	response.end(body);
}
