// SPDX-License-Identifier: Apache-2.0
// The spans of requests that take a prefill and a decode worker, where one of them fails.
import type { Span } from "@dynamo-ts/runtime";
import { afterEach, describe, expect, it } from "vitest";
import type { FrontendConfig } from "./config.js";
import { type Script, sendAll } from "./scripted-worker.js";
import { chat, closeStack, gone, prefilled, start } from "./test-support/pair.js";

const spans: Span[] = [];

afterEach(async () => {
	await closeStack();
	spans.length = 0;
});

const tracedPair = (prefill: Script[], decode: Script[], config: Partial<FrontendConfig> = {}) =>
	start(prefill, decode, { enforceDisagg: true, ...config }, [], {
		spanSink: { end: (span) => spans.push(span) },
		log: { filter: "off", format: "readable", ansi: false, localTime: false },
	});

/** Waits until all spans have ended. */
const ended = (names: readonly string[]) =>
	expect.poll(() => spans.map(({ name }) => name).sort()).toEqual([...names].sort());
const routes = () =>
	spans.filter(({ name }) => name === "router.route_request").sort((a, b) => a.startedAt - b.startedAt);

describe("a prompt that a prefill worker computes", () => {
	it.each<[string, Script, string]>([
		["said in its last item", (call) => call.finish({ error: "broken" }).end(), "the prefill worker failed: broken"],
		["of a worker that is none", sendAll([5]), "the prefill worker returned no disaggregated_params: is it one?"],
	])("has its failure in the spans around it: %s", async (_how, script, message) => {
		await tracedPair([script], [sendAll([5, 6], "stop")]);
		expect((await chat({ stream: false })).status).toBeGreaterThanOrEqual(500);
		await ended(["http-request", "prefill_routing", "router.route_request", "handle_payload"]);
		const prefill = spans.find(({ name }) => name === "prefill_routing");
		expect(prefill).toMatchObject({ failure: message, fields: { "request.outcome": "error" } });
		expect(routes().map(({ failure, fields }) => [failure !== undefined, fields["request.outcome"]])).toEqual([
			[true, "error"],
		]);
	});

	it("is asked for anew, in a span that says which attempt it is, when its decode worker is lost", async () => {
		let calls = 0;
		const script: Script = (call) => {
			if (calls++ > 0) return sendAll([6], "stop")(call);
			call.tokens([5]);
			setImmediate(() => call.fail(gone()));
		};
		await tracedPair([prefilled], [script, script], { migrationLimit: 1 });
		await chat({ stream: true });
		const leg = ["prefill_routing", "router.route_request", "handle_payload", "router.route_request", "handle_payload"];
		await ended(["http-request", ...leg, ...leg]);
		const facts = routes().map(({ fields }) => [fields["request.attempt"], fields["migration.is_retry"]]);
		expect(facts).toEqual([
			["0", false],
			["0", false],
			["1", true],
			["1", true],
		]);
		expect(routes().map(({ failure }) => failure)).toEqual([undefined, "disconnected", undefined, undefined]);
		for (const span of spans) {
			const parent = spans.find(({ spanId }) => spanId === span.parentId);
			if (parent === undefined) continue;
			expect(span.startedAt, span.name).toBeGreaterThanOrEqual(parent.startedAt);
			if (parent.name === "prefill_routing") expect(span.endedAt).toBeLessThanOrEqual(parent.endedAt as number);
		}
	});
});
