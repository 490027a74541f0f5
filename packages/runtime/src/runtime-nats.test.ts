// SPDX-License-Identifier: Apache-2.0
// The runtime over NATS where NATS fails at the worst moment.
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { findNatsServer, NatsServer, titled, until } from "@dynamo-ts/testing/internal";
import { afterEach, describe, expect, it } from "vitest";
import { runtimeConfigFromEnv } from "./config.js";
import { DistributedRuntime } from "./runtime.js";

const program = findNatsServer();
const missing = program.missing;

describe.skipIf(missing)(titled("a runtime over NATS", missing), () => {
	const stops: (() => Promise<unknown> | unknown)[] = [];
	afterEach(async () => {
		for (const stop of stops.splice(0).reverse()) await stop();
	});

	const start = async () => {
		const nats = await NatsServer.start({ jetStream: false });
		stops.push(() => nats.stop());
		const folder = mkdtempSync(join(tmpdir(), "dynamo-runtime-nats-"));
		stops.push(() => rmSync(folder, { recursive: true, force: true }));
		const env = {
			DYN_DISCOVERY_BACKEND: "file",
			DYN_FILE_KV: folder,
			DYN_REQUEST_PLANE: "nats",
			NATS_SERVER: nats.url,
			DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS: "0",
			DYN_LOG: "off",
		};
		const runtime = await DistributedRuntime.create(runtimeConfigFromEnv(env));
		stops.push(() => runtime.shutdown());
		const records = () => readdirSync(join(folder, "v1", "instances")).filter((name) => !name.startsWith(".tmp"));
		return { nats, runtime, records };
	};
	const endpointOf = (runtime: DistributedRuntime) =>
		runtime.namespace("dynamo").component("backend").endpoint("generate");

	it("an endpoint is shown to others only once requests can reach it", async () => {
		const { nats, runtime, records } = await start();
		const connection = await runtime.natsConnection();
		await nats.kill();
		await until("the loss is noticed", () => !connection.up);
		const serving = endpointOf(runtime).serve((_request, response) => response.end());
		await new Promise((resolve) => setTimeout(resolve, 50));
		expect(records()).toEqual([]);
		await nats.restart();
		expect((await serving).record.transport).toEqual({
			nats_tcp: `dynamo_backend.generate-${runtime.instanceId.toString(16)}`,
		});
		expect(records()).toHaveLength(1);
	});

	it("shuts down while NATS is away, also in the middle of a registration", async () => {
		const { nats, runtime } = await start();
		const connection = await runtime.natsConnection();
		await endpointOf(runtime).serve((_request, response) => response.end());
		await nats.kill();
		await until("the loss is noticed", () => !connection.up);
		const serving = runtime
			.namespace("dynamo")
			.component("backend")
			.endpoint("other")
			.serve((_request, response) => response.end())
			.catch((error: Error) => error);
		await new Promise((resolve) => setTimeout(resolve, 20));
		await runtime.shutdown();
		expect(await serving).toBeInstanceOf(Error);
	});
});
