// SPDX-License-Identifier: Apache-2.0
import { DynamoError } from "@dynamo-ts/protocols/internal";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import type { EndpointHandler, IngressRequest, ResponseWriter } from "../request-plane/request-plane.js";
import { Canary } from "./canary.js";
import { createHealth } from "./health.js";
import { createLogger } from "./logging.js";

const log = createLogger({ filter: "off", format: "readable", ansi: false, localTime: false }, "test");

interface Asked {
	readonly request: IngressRequest;
	readonly response: ResponseWriter;
}

let asked: Asked[];
let results: boolean[];
let canary: Canary;
let handler: EndpointHandler;

beforeEach(() => {
	vi.useFakeTimers();
	asked = [];
	results = [];
	handler = (request, response) => void asked.push({ request, response });
	canary = new Canary({
		handler: (request, response) => handler(request, response),
		payload: { token_ids: [1] },
		waitMs: 10_000,
		timeoutMs: 3000,
		onResult: (healthy) => results.push(healthy),
		log,
	});
	canary.start();
});
afterEach(() => {
	canary.stop();
	expect(vi.getTimerCount()).toBe(0);
	vi.useRealTimers();
});

describe("a canary", () => {
	test("asks at once, then after each silence; the first item decides, the rest is let through", () => {
		expect(asked).toHaveLength(1);
		expect(asked[0]?.request.payload).toEqual({ token_ids: [1] });
		asked[0]?.response.send({ data: {} });
		asked[0]?.response.send({ data: {} });
		asked[0]?.response.end();
		expect(results).toEqual([true]);
		vi.advanceTimersByTime(9_999);
		expect(asked).toHaveLength(1);
		vi.advanceTimersByTime(1);
		expect(asked).toHaveLength(2);
	});

	test("asks nothing while there is traffic, which proves as much", () => {
		asked[0]?.response.fail(new DynamoError("Internal", "broken"));
		for (let i = 0; i < 5; i++) {
			canary.activity();
			vi.advanceTimersByTime(10_000);
		}
		expect(asked).toHaveLength(1);
		expect(results).toEqual([false, true, true, true, true, true]);
		vi.advanceTimersByTime(10_000);
		expect(asked).toHaveLength(2);
	});

	test.each([
		["an error", (response: ResponseWriter) => response.fail(new DynamoError("Internal", "x"))],
		["an error item", (response: ResponseWriter) => response.send({ event: "error", comment: ["x"] })],
		["an end without an item", (response: ResponseWriter) => response.end()],
	])("%s: not healthy until the next check passes", (_name, play) => {
		play(asked[0]!.response);
		expect(results).toEqual([false]);
		vi.advanceTimersByTime(10_000);
		asked[1]?.response.send({ data: {} });
		expect(results).toEqual([false, true]);
	});

	test("an exception, also a late one", async () => {
		handler = () => {
			throw new Error("x");
		};
		asked[0]?.response.send({ data: {} });
		vi.advanceTimersByTime(10_000);
		expect(results).toEqual([true, false]);
		handler = async () => {
			throw new Error("x");
		};
		await vi.advanceTimersByTimeAsync(10_000);
		expect(results).toEqual([true, false, false]);
	});

	test("silence: not healthy, and the request is taken back", () => {
		const cancelled: string[] = [];
		asked[0]?.request.onCancel((kind) => cancelled.push(kind));
		vi.advanceTimersByTime(3000);
		expect(results).toEqual([false]);
		expect(cancelled).toEqual(["kill"]);
		expect(asked[0]?.response.closed).toBe(true);
		asked[0]?.response.send({ data: {} });
		expect(results).toEqual([false]);
	});

	test.each(["the time limit", "a stop"])("what is left of a check that was decided is taken back with %s", (what) => {
		const cancelled: string[] = [];
		asked[0]?.request.onCancel((kind) => cancelled.push(kind));
		asked[0]?.response.send({ data: {} });
		vi.advanceTimersByTime(2999);
		expect(cancelled).toEqual([]);
		if (what === "a stop") canary.stop();
		else vi.advanceTimersByTime(1);
		expect(cancelled).toEqual(["kill"]);
		expect(asked[0]?.response.closed).toBe(true);
		expect(results).toEqual([true]);
	});

	test("a full endpoint is not ill", () => {
		asked[0]?.response.send({ data: {} });
		vi.advanceTimersByTime(10_000);
		asked[1]?.response.fail(new DynamoError("WorkerOverloaded", "full"));
		expect(results).toEqual([true]);
	});

	test("stopped in the middle of a check it says nothing; started again it asks anew", () => {
		canary.stop();
		asked[0]?.response.send({ data: {} });
		vi.advanceTimersByTime(60_000);
		expect(results).toEqual([]);
		canary.start();
		asked[1]?.response.send({ data: {} });
		expect(results).toEqual([true]);
	});
});

test("endpoints that were named must be there and ready", () => {
	const health = createHealth(false, ["generate", "other"]);
	health.setEndpointReady("generate", true);
	expect(health.ready).toBe(false);
	health.setEndpointReady("other", true);
	expect(health.ready).toBe(true);
	health.setEndpointReady("other", false);
	expect(health.ready).toBe(false);
	expect(createHealth(false, []).ready).toBe(false);
});
