// SPDX-License-Identifier: Apache-2.0
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { request as httpRequest } from "node:http";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { createHealth, type Health } from "./health.js";
import { createLogger } from "./logging.js";
import { createMetricsRegistry, type MetricsRegistry } from "./metrics.js";
import { type SystemServer, startSystemServer } from "./system-server.js";

const log = createLogger({ filter: "off", format: "readable", ansi: false, localTime: false });

describe("system server", () => {
	let health: Health;
	let metrics: MetricsRegistry;
	let server: SystemServer;
	let folder: string;

	const start = async (overrides: { healthPath?: string; livePath?: string } = {}) => {
		server = await startSystemServer({
			host: "127.0.0.1",
			port: 0,
			healthPath: "/health",
			livePath: "/live",
			health,
			metrics,
			log,
			...overrides,
		});
	};
	beforeEach(async () => {
		health = createHealth(false);
		metrics = createMetricsRegistry();
		folder = await mkdtemp(join(tmpdir(), "system-server-"));
		await start();
	});
	afterEach(async () => {
		await server.close();
		await rm(folder, { recursive: true, force: true });
	});
	const get = async (path: string, init?: RequestInit) => {
		const response = await fetch(`${server.url}${path}`, init);
		return {
			status: response.status,
			type: response.headers.get("content-type"),
			allow: response.headers.get("allow"),
			body: await response.text(),
		};
	};
	const TEXT = "text/plain; charset=utf-8";

	it("is not ready until an endpoint with a health payload is, and never again after it withdrew", async () => {
		const first = await get("/health");
		expect(first.status).toBe(503);
		expect(first.type).toBe(TEXT);
		expect(first.body).toMatch(/^\{"status":"notready","uptime":\{"secs":\d+,"nanos":\d+\},"endpoints":\{\}\}$/);
		health.setEndpointReady("kv_query", true);
		expect(JSON.parse((await get("/health")).body)).toMatchObject({
			status: "notready",
			endpoints: { kv_query: "ready" },
		});
		health.setEndpointReady("generate", false, { gating: true });
		expect((await get("/health")).status).toBe(503);
		health.setEndpointReady("generate", true);
		const ready = await get("/health");
		expect(ready.status).toBe(200);
		expect(JSON.parse(ready.body)).toMatchObject({
			status: "ready",
			endpoints: { kv_query: "ready", generate: "ready" },
		});
		health.setEndpointReady("prefill", false, { gating: true });
		expect((await get("/health")).status).toBe(503);
		health.removeEndpoint("prefill");
		expect((await get("/health")).status).toBe(200);
		health.withdraw();
		expect((await get("/health")).status).toBe(503);
	});

	it("is live whether ready or not", async () => {
		const live = await get("/live");
		expect(live.status).toBe(200);
		expect(JSON.parse(live.body)).toMatchObject({ status: "notready" });
	});

	it("can start ready", () => {
		const early = createHealth(true);
		expect(early.ready).toBe(true);
		early.setEndpointReady("generate", false, { gating: true });
		expect(early.ready).toBe(false);
	});

	it("serves metrics", async () => {
		metrics.createCounter("x_total", "X").inc();
		expect(await get("/metrics?x=y")).toEqual({
			status: 200,
			type: TEXT,
			allow: null,
			body: "# HELP dynamo_component_x_total X\n# TYPE dynamo_component_x_total counter\ndynamo_component_x_total 1\n",
		});
	});

	it("serves registered files and nothing else", async () => {
		const bytes = Buffer.alloc(300_000, "0123456789");
		await writeFile(join(folder, "tokenizer.json"), bytes);
		await writeFile(join(folder, "empty"), "");
		const url = server.addMetadataFile(
			"dynamo/backend/generate/smol/_base/tokenizer.json",
			join(folder, "tokenizer.json"),
		);
		expect(url).toBe(`${server.url}/v1/metadata/dynamo/backend/generate/smol/_base/tokenizer.json`);
		const response = await fetch(url);
		expect(response.headers.get("content-type")).toBe("application/octet-stream");
		expect(response.headers.get("content-length")).toBe("300000");
		expect(Buffer.from(await response.arrayBuffer()).equals(bytes)).toBe(true);
		expect((await fetch(server.addMetadataFile("a/b/c d", join(folder, "empty")))).status).toBe(200);
		expect((await fetch(url, { method: "HEAD" })).headers.get("content-length")).toBe("300000");
		for (const path of [
			"/v1/metadata/",
			"/v1/metadata/dynamo/backend/generate/smol/_base/../_base/x",
			"/v1/metadata/%2e%2e",
		]) {
			expect(await get(path)).toMatchObject({ status: 404, body: "Route not found", type: TEXT });
		}
		server.removeMetadataFile("dynamo/backend/generate/smol/_base/tokenizer.json");
		expect((await fetch(url)).status).toBe(404);
		const gone = server.addMetadataFile("gone", join(folder, "nothing"));
		expect((await fetch(gone)).status).toBe(500);
	});

	it("answers other paths and methods as the real one does", async () => {
		expect(await get("/nope")).toMatchObject({ status: 404, type: TEXT, body: "Route not found" });
		expect(await get("/metadata")).toMatchObject({ status: 404, body: "Discovery metadata not available" });
		expect(await get("/engine/sleep", { method: "POST" })).toMatchObject({
			status: 404,
			body: '{"error":"Route not found","message":"Route /engine/sleep not found"}',
		});
		for (const path of ["/health", "/live", "/metrics"]) {
			expect(await get(path, { method: "POST" })).toMatchObject({ status: 405, allow: "GET,HEAD", body: "" });
		}
		expect((await get("/health", { method: "HEAD" })).status).toBe(503);
	});

	it("moves the health paths where it is told", async () => {
		await server.close();
		await start({ healthPath: "/hz", livePath: "/lz" });
		expect((await get("/hz")).status).toBe(503);
		expect((await get("/lz")).status).toBe(200);
		expect((await get("/health")).status).toBe(404);
	});

	it("survives a client that does not speak HTTP, and a request target that is no path", async () => {
		await new Promise<void>((resolve) => {
			const socket = connect(server.port, "127.0.0.1", () => socket.end("\x00\x01garbage\r\n\r\n"));
			socket.on("error", () => {});
			socket.on("close", () => resolve());
			socket.resume();
		});
		const status = await new Promise<number | undefined>((resolve, reject) => {
			httpRequest({ port: server.port, host: "127.0.0.1", path: "*" }, (response) => {
				response.resume();
				resolve(response.statusCode);
			})
				.on("error", reject)
				.end();
		});
		expect(status).toBe(404);
		expect((await get("/live")).status).toBe(200);
	});
});
