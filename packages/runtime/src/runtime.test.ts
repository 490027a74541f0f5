// SPDX-License-Identifier: Apache-2.0
import { randomUUID } from "node:crypto";
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Annotated, DynamoError, EndpointRecord } from "@dynamo-ts/protocols/internal";
import { until } from "@dynamo-ts/testing/internal";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { EndpointClient } from "./component.js";
import type { RuntimeConfig } from "./config.js";
import { createMemStore, type MemStore } from "./discovery/mem.js";
import type { EndpointHandler, RequestOptions } from "./request-plane/request-plane.js";
import { DistributedRuntime } from "./runtime.js";

const QUIET = { filter: "off", format: "readable", ansi: false, localTime: false } as const;

function call(client: EndpointClient, instance: EndpointRecord, payload: unknown = {}, options?: RequestOptions) {
	const items: Annotated<unknown>[] = [];
	return new Promise<{ items: Annotated<unknown>[]; error?: DynamoError }>((resolve) => {
		const sink = {
			onItem: (item: Annotated<unknown>) => void items.push(item),
			onEnd: () => resolve({ items }),
			onError: (error: DynamoError) => resolve({ items, error }),
		};
		client.send(instance, { id: randomUUID(), payload }, sink, options);
	});
}

const echo: EndpointHandler = (request, response) => {
	response.send({ data: request.payload });
	response.end();
};

for (const backend of ["mem", "file"] as const) {
	describe(`distributed runtime - ${backend}`, () => {
		let root: string;
		let memStore: MemStore;
		let runtimes: DistributedRuntime[];

		beforeEach(async () => {
			root = await mkdtemp(join(tmpdir(), "runtime-"));
			memStore = createMemStore();
			runtimes = [];
		});
		afterEach(async () => {
			for (const runtime of runtimes) await runtime.shutdown();
			await rm(root, { recursive: true, force: true });
		});

		const create = async (config: Partial<RuntimeConfig> = {}) => {
			const runtime = await DistributedRuntime.create({
				discoveryBackend: backend,
				fileKvRoot: root,
				memStore,
				shutdownGraceMs: 0,
				shutdownTimeoutMs: 5000,
				log: QUIET,
				...config,
			});
			runtimes.push(runtime);
			return runtime;
		};
		const generate = (runtime: DistributedRuntime) =>
			runtime.namespace("dynamo").component("backend").endpoint("generate");

		it("an endpoint is found and answers", async () => {
			const worker = await create();
			const frontend = await create();
			const client = await generate(frontend).client();
			expect(client.instances()).toEqual([]);
			const found = client.waitForInstances(5000);
			const served = await generate(worker).serve(echo, { deviceType: "cpu" });
			expect(await found).toEqual([served.record]);
			expect(served.record).toMatchObject({ type: "Endpoint", instance_id: worker.instanceId, device_type: "cpu" });
			expect(await call(client, served.record, { a: 1 })).toEqual({ items: [{ data: { a: 1 } }] });
			await until("nothing under way", () => served.inflight === 0);
			await served.stop();
			await until("the instance gone", () => client.instances().length === 0);
		});

		it("a deferred endpoint is found once it registers, and can be served again after a stop", async () => {
			const worker = await create();
			const client = await generate(worker).client();
			const served = await generate(worker).serve(echo, { register: false });
			await expect(generate(worker).serve(echo)).rejects.toMatchObject({ errorClass: "Conflict" });
			await expect(client.waitForInstances(50)).rejects.toThrow("no instance of dynamo/backend/generate");
			await served.register();
			await served.register();
			expect(await client.waitForInstances(5000)).toHaveLength(1);
			await served.stop();
			await served.stop();
			const again = await generate(worker).serve(echo);
			await client.waitForInstances(5000);
			expect((await call(client, again.record)).error).toBeUndefined();
		});

		it("instances of other endpoints do not show", async () => {
			const worker = await create();
			const client = await generate(worker).client();
			await worker.namespace("dynamo").component("backend").endpoint("other").serve(echo);
			await worker.namespace("dynamo").component("prefill").endpoint("generate").serve(echo);
			await worker.namespace("other").component("backend").endpoint("generate").serve(echo);
			const served = await generate(worker).serve(echo);
			expect(await client.waitForInstances(5000)).toEqual([served.record]);
		});

		it("a failed instance is put aside for a while, and the retry sees that", async () => {
			const worker = await create();
			const frontend = await create({ inhibitedDurationMs: 200 });
			const client = await generate(frontend).client();
			const served = await generate(worker).serve(() => {});
			await client.waitForInstances(5000);
			let changes = 0;
			client.onChange(() => changes++);
			const { error } = await call(client, served.record, {}, { firstResponseTimeoutMs: 50 });
			expect(error?.errorClass).toBe("ResponseTimeout");
			expect(client.available()).toEqual([]);
			expect(client.instances()).toHaveLength(1);
			expect(changes).toBe(1);
			// A turn that takes long makes the timer fire early, which must not look like a change.
			const busyUntil = performance.now() + 30;
			client.reportFailure(worker.instanceId);
			while (performance.now() < busyUntil);
			await until("the instance available again", () => client.available().length === 1);
			expect(changes).toBe(2);
		});

		it("a put-aside instance comes back at once when discovery shows it anew", async () => {
			const worker = await create();
			const client = await generate(worker).client();
			const served = await generate(worker).serve(echo);
			await client.waitForInstances(5000);
			client.reportFailure(worker.instanceId);
			client.reportFailure(123n);
			expect(client.available()).toEqual([]);
			await served.unregister();
			await until("the instance gone", () => client.instances().length === 0);
			await served.register();
			await until("the instance available", () => client.available().length === 1);
		});

		it("a request error does not speak against the instance", async () => {
			const worker = await create();
			const client = await generate(worker).client();
			const served = await generate(worker).serve(() => {
				throw new Error("bad handler");
			});
			await client.waitForInstances(5000);
			expect((await call(client, served.record)).error?.errorClass).toBe("Internal");
			expect(client.available()).toHaveLength(1);
		});

		it("shutdown lets streams finish, refuses new ones, and leaves nothing behind", async () => {
			const worker = await create({ systemPort: 0, systemHost: "127.0.0.1" });
			const frontend = await create();
			const client = await generate(frontend).client();
			let finish: () => void = () => {};
			const started = new Promise<void>((resolve) => {
				void generate(worker).serve(
					(_request, response) => {
						response.send({ data: 1 });
						finish = () => {
							response.send({ data: 2 });
							response.end();
						};
						resolve();
					},
					{ healthCheckPayload: {} },
				);
			});
			const [instance] = (await client.waitForInstances(5000)) as [EndpointRecord];
			const stream = call(client, instance);
			await started;
			expect(worker.health.ready).toBe(true);
			const url = worker.systemServer?.url as string;
			expect((await fetch(`${url}/health`)).status).toBe(200);
			const order: string[] = [];
			client.onChange(() => order.push("left discovery"));
			worker.signal.addEventListener("abort", () => order.push("began"));
			const done = worker.shutdown().then(() => order.push("done"));
			expect(worker.health.ready).toBe(false);
			expect((await fetch(`${url}/health`)).status).toBe(503);
			expect((await fetch(`${url}/live`)).status).toBe(200);
			await until("the record gone", () => client.instances().length === 0);
			await until("new requests refused", async () => {
				const { error } = await call(client, instance, {}, { firstResponseTimeoutMs: 100 });
				return error?.errorClass === "WorkerUnavailable";
			});
			expect(order).toEqual(["began", "left discovery"]);
			finish();
			expect(await stream).toEqual({ items: [{ data: 1 }, { data: 2 }] });
			await done;
			expect(order.at(-1)).toBe("done");
			await expect(generate(worker).serve(echo)).rejects.toThrow("shutting down");
			await expect(fetch(`${url}/live`)).rejects.toThrow();
			if (backend === "file") expect(await readdir(join(root, "v1/instances"))).toEqual([]);
		});

		it("shutdown cuts off what does not finish in time", async () => {
			const worker = await create({ shutdownTimeoutMs: 50 });
			const frontend = await create();
			const client = await generate(frontend).client();
			const served = await generate(worker).serve((_request, response) => response.send({ data: 1 }));
			await client.waitForInstances(5000);
			const stream = call(client, served.record);
			await until("the request at the worker", () => served.inflight === 1);
			await worker.shutdown();
			expect((await stream).error?.errorClass).toBe("Disconnected");
		});

		it("metrics of an endpoint are on the runtime's page with their labels", async () => {
			const worker = await create();
			const client = await generate(worker).client();
			const served = await generate(worker).serve(echo);
			generate(worker).metrics.createGauge("custom", "Custom").set(7);
			await client.waitForInstances(5000);
			await call(client, served.record);
			await until("nothing under way", () => served.inflight === 0);
			const page = await worker.metrics.scrape();
			const labels = `dynamo_component="backend",dynamo_endpoint="generate",dynamo_namespace="dynamo",worker_id="${worker.instanceId.toString(16)}"`;
			expect(page).toContain(`dynamo_component_custom{${labels}} 7\n`);
			expect(page).toContain(`dynamo_component_requests_total{${labels}} 1\n`);
			expect(page).toContain(`dynamo_component_inflight_requests{${labels}} 0\n`);
			expect(page).toMatch(/dynamo_component_uptime_seconds\{worker_id="[0-9a-f]+"\} \d/);
		});

		it("refuses names that would break keys", async () => {
			const runtime = await create();
			for (const name of ["", "a/b", "a b", "a\n"]) {
				expect(() => runtime.namespace(name)).toThrow("is not valid");
				expect(() => runtime.namespace("x").component(name)).toThrow("is not valid");
			}
			expect(runtime.namespace("x")).toBe(runtime.namespace("x"));
		});
	});
}

describe("distributed runtime - health checks", () => {
	it("/health follows what the endpoint answers, and asks the payload that it brought", async () => {
		const runtime = await DistributedRuntime.create({
			discoveryBackend: "mem",
			memStore: createMemStore(),
			systemHost: "127.0.0.1",
			systemPort: 0,
			healthCheckEnabled: true,
			canaryWaitMs: 20,
			healthCheckTimeoutMs: 1000,
			log: QUIET,
		});
		try {
			let well = false;
			const asked: unknown[] = [];
			const endpoint = runtime.namespace("ns").component("c").endpoint("generate");
			const health = async () => {
				const answer = await fetch(`${runtime.systemServer?.url}/health`);
				const { status, endpoints } = (await answer.json()) as { status: string; endpoints: unknown };
				return [answer.status, status, endpoints];
			};
			await endpoint.serve(
				(request, response) => {
					asked.push(request.payload);
					if (well) response.send({ data: {} });
					response.end();
				},
				{ healthCheckPayload: { check: 1 } },
			);
			expect(await health()).toEqual([503, "notready", { generate: "notready" }]);
			well = true;
			await until("the endpoint is healthy", async () => (await health())[0] === 200);
			expect(await health()).toEqual([200, "ready", { generate: "ready" }]);
			well = false;
			await until("the endpoint is ill", async () => (await health())[0] === 503);
			expect(asked[0]).toEqual({ check: 1 });
			expect(await runtime.metrics.scrape()).not.toMatch(/requests_total\{[^}]*\} [1-9]/);
		} finally {
			await runtime.shutdown();
		}
	});
});

describe("distributed runtime - ports", () => {
	it("a taken port is one clear error", async () => {
		const blocker = createServer();
		await new Promise<void>((resolve) => blocker.listen(0, "127.0.0.1", resolve));
		const { port } = blocker.address() as { port: number };
		const root = await mkdtemp(join(tmpdir(), "runtime-"));
		const common = { log: QUIET, discoveryBackend: "file", fileKvRoot: root } as const;
		await expect(DistributedRuntime.create({ ...common, systemPort: port, systemHost: "127.0.0.1" })).rejects.toThrow(
			`system server: cannot listen on 127.0.0.1:${port}: the port is in use`,
		);
		const runtime = await DistributedRuntime.create({ ...common, tcpRpcPort: port, tcpResponsePort: port });
		const endpoint = runtime.namespace("a").component("b").endpoint("c");
		const taken = (variable: string) => `127.0.0.1:${port}: the port is in use; choose another with ${variable}`;
		await expect(endpoint.serve(() => {})).rejects.toThrow(taken("DYN_TCP_RPC_PORT"));
		await expect(endpoint.client()).rejects.toThrow(taken("DYN_TCP_RESPONSE_STREAM_PORT"));
		await expect(runtime.openClient()).rejects.toThrow(taken("DYN_TCP_RESPONSE_STREAM_PORT"));
		await runtime.shutdown();
		const abroad = await DistributedRuntime.create({ ...common, tcpRpcHost: "203.0.113.9" });
		await expect(
			abroad
				.namespace("a")
				.component("b")
				.endpoint("c")
				.serve(() => {}),
		).rejects.toThrow(
			"request plane: cannot listen on 203.0.113.9:0: it is no address of this machine; set DYN_TCP_RPC_HOST",
		);
		await abroad.shutdown();
		await new Promise((resolve) => blocker.close(resolve));
		await rm(root, { recursive: true, force: true });
	});
});
