// SPDX-License-Identifier: Apache-2.0
import { connect } from "node:net";
import { type BootstrapInfo, DynamoError } from "@dynamo-ts/protocols/internal";
import { createMemStore, DistributedRuntime, type EndpointHandler } from "@dynamo-ts/runtime";
import { CollectingSink, freePort } from "@dynamo-ts/testing/internal";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { awaitMeetings } from "./await-meetings.js";
import { MeetingServer } from "./meeting-server.js";

let runtime: DistributedRuntime;
let server: MeetingServer;
let port: number;

beforeEach(async () => {
	const log = { filter: "off", format: "readable", ansi: false, localTime: false } as const;
	runtime = await DistributedRuntime.create({
		discoveryBackend: "mem",
		memStore: createMemStore(),
		systemPort: -1,
		shutdownTimeoutMs: 500,
		log,
	});
	port = await freePort();
	server = await MeetingServer.listen("127.0.0.1", port, runtime.log);
});
afterEach(async () => {
	await server.close();
	await runtime.shutdown();
});

const info = (room: bigint): BootstrapInfo => ({
	bootstrap_host: "127.0.0.1",
	bootstrap_port: port,
	bootstrap_room: room,
	handoff_id: "55a51329-1b91-49cc-b0e2-6e473f8d9848",
});

/** Serves the handler at an endpoint of its own. @returns a function that sends a request there. */
async function serve(name: string, handler: EndpointHandler) {
	const endpoint = runtime.namespace("n").component(name).endpoint("generate");
	await endpoint.serve(handler);
	const client = await endpoint.client();
	const [instance] = await client.waitForInstances(1000);
	return (room: bigint) => {
		const sink = new CollectingSink();
		const payload = { token_ids: [1], bootstrap_info: info(room) };
		return { sink, call: client.send(instance!, { id: `r${room}`, payload }, sink) };
	};
}

describe("a decode worker", () => {
	test.each(["before", "after"])(
		"begins when the prompt is computed, come it %s the prefill worker is done",
		async (when) => {
			const order: string[] = [];
			let finish: (() => void) | undefined;
			const prefill = await serve(
				"prefill",
				server.announce((_request, response) => {
					finish = () => {
						order.push("prefill");
						response.end();
					};
				}),
			);
			const decode = await serve(
				"decode",
				awaitMeetings((_request, response) => {
					order.push("decode");
					response.send({ data: { token_ids: [2] } });
					response.end();
				}),
			);
			const first = prefill(7n);
			await expect.poll(() => finish).toBeDefined();
			if (when === "after") {
				finish?.();
				await first.sink.done;
			}
			const second = decode(7n);
			if (when === "before") {
				await expect.poll(() => server.waiting).toBe(1);
				finish?.();
			}
			await second.sink.done;
			expect(order).toEqual(["prefill", "decode"]);
			expect(second.sink.items).toHaveLength(1);
		},
	);

	test("fails with what the prefill worker failed with, or when there is none", async () => {
		const fail: EndpointHandler = (_request, response) => response.fail(new DynamoError("Unknown", "out of blocks"));
		const prefill = await serve("prefill", server.announce(fail));
		const decode = await serve(
			"decode",
			awaitMeetings((_request, response) => response.end()),
		);
		await prefill(8n).sink.done;
		const second = decode(8n);
		await second.sink.done;
		expect(second.sink.error?.message).toContain("out of blocks");
		await server.close();
		const third = decode(9n);
		await third.sink.done;
		expect(third.sink.error?.message).toMatch(/meeting at .* failed: .*ECONNREFUSED/);
		server = await MeetingServer.listen("127.0.0.1", port, runtime.log);
	});

	test("stops waiting when its client leaves or the prompt is abandoned", async () => {
		const prefill = await serve(
			"prefill",
			server.announce(() => {}),
		);
		const decode = await serve(
			"decode",
			awaitMeetings((_request, response) => response.end()),
		);
		const [first, second] = [prefill(10n), decode(10n)];
		await expect.poll(() => server.waiting).toBe(1);
		first.call.kill();
		await second.sink.done;
		expect(second.sink.error?.message).toContain("abandoned");
		const third = decode(11n);
		third.call.kill();
		await third.sink.done;
		expect(third.sink.error?.errorClass).toBe("Cancelled");
	});
});

test("what is no meeting is hung up on", async () => {
	const socket = connect(port, "127.0.0.1");
	socket.write("x".repeat(2000));
	await new Promise<void>((resolve) => socket.on("close", () => resolve()).on("error", () => {}));
});
