// SPDX-License-Identifier: Apache-2.0

import { DynamoError } from "@dynamo-ts/protocols/internal";
import { createLogger, type LogFields, type LogLevel, type Span } from "@dynamo-ts/runtime";
import { Tracer } from "@dynamo-ts/runtime/internal";
import { parsePrometheus } from "@dynamo-ts/testing/internal";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { frontendConfigFromEnv } from "./config.js";
import { FrontendMetrics } from "./frontend-metrics.js";
import { failureOf } from "./http-errors.js";
import { type ApiEndpoint, type Outcome, RequestTracker } from "./request-tracker.js";
import type { WorkerSet } from "./worker-set.js";

const lines: { level: LogLevel; message: string; fields: LogFields }[] = [];
const log = createLogger({ filter: "info", format: "jsonl", ansi: false, localTime: false }, "test", (line, level) => {
	const { message, ...fields } = JSON.parse(line);
	lines.push({ level, message, fields });
});
const ended: Span[] = [];
const tracer = new Tracer({ sink: { end: (span) => ended.push(span) }, lifecycle: undefined }, () => true);

let metrics: FrontendMetrics;
beforeEach(() => {
	lines.length = 0;
	ended.length = 0;
	metrics = new FrontendMetrics({
		prefix: "dynamo_frontend",
		buckets: frontendConfigFromEnv({}).buckets,
		nim: { python: true },
	});
});
afterEach(() => metrics.close());

function track(endpoint: ApiEndpoint = "chat_completions"): RequestTracker {
	const span = tracer.enter("http-request", { xRequestId: "x-1" });
	return new RequestTracker(
		{
			endpoint,
			model: "m",
			stream: true,
			exchange: {
				span,
				requestId: "id-1",
				receivedAt: performance.now(),
				hold: () => {},
				release: () => span.end(),
			},
		},
		metrics,
		log,
	);
}

const OUTCOMES: [string, Outcome, string, string, LogLevel][] = [
	["success", { kind: "success" }, "success", "", "info"],
	["a client that left", { kind: "disconnected" }, "error", "cancelled", "info"],
	[
		"a refusal",
		{ kind: "failure", failure: failureOf(new DynamoError("InvalidArgument", "x")) },
		"error",
		"validation",
		"error",
	],
	[
		"an outage",
		{ kind: "failure", failure: failureOf(new DynamoError("Disconnected", "x")) },
		"error",
		"unavailable",
		"error",
	],
	["a bug", { kind: "failure", failure: failureOf(new Error("x")) }, "error", "internal", "error"],
];

describe.each(OUTCOMES)("%s", (_name, outcome, status, errorType, level) => {
	it.each([0, 3])("is counted once, gauges come down, two lines are written (%s tokens)", async (tokens) => {
		const tracker = track();
		tracker.enterStage("preprocess");
		tracker.inputTokens = 7;
		tracker.workerId = 18446744073709551615n;
		tracker.enterStage("dispatch");
		for (let i = 0; i < tokens; i++) tracker.onTokens(1, performance.now(), 0.001);
		tracker.finish(outcome);
		tracker.finish({ kind: "success" });

		const page = parsePrometheus(await metrics.registry.scrape());
		const all = page.select("dynamo_frontend_requests_total");
		expect(all.map(({ labels, value }) => [labels.status, labels.error_type, value])).toEqual([[status, errorType, 1]]);
		for (const gauge of ["inflight_requests", "active_requests", "queued_requests", "stage_requests"]) {
			expect(page.sum(`dynamo_frontend_${gauge}`)).toBe(0);
		}
		expect(page.sum("dynamo_frontend_output_tokens_total")).toBe(tokens);
		expect(page.value("dynamo_frontend_inter_token_latency_seconds_count")).toBe(tokens === 0 ? undefined : tokens - 1);

		expect(lines.map(({ message }) => message)).toEqual(["request received", "request completed"]);
		for (const { fields } of lines) {
			expect(fields).toMatchObject({
				request_id: "id-1",
				x_request_id: "x-1",
				model: "m",
				request_type: "stream",
				span_name: "http-request",
				trace_id: expect.stringMatching(/^[0-9a-f]{32}$/),
			});
		}
		const shown = errorType === "cancelled" ? "cancelled" : status;
		expect(lines[1]).toMatchObject({
			level,
			fields: {
				status: shown,
				"request.outcome": shown,
				input_tokens: "7",
				output_tokens: String(tokens),
				elapsed_ms: expect.stringMatching(/^\d+$/),
				decode_worker_id: "18446744073709551615",
			},
		});
		expect(lines[1]?.fields.error_type).toBe(errorType === "" ? undefined : errorType);
		expect(typeof lines[1]?.fields.ttft_ms).toBe(tokens === 0 ? "undefined" : "string");
		expect(ended.map(({ name, failure }) => [name, failure])).toEqual([
			["http-request", shown === "error" ? "" : undefined],
		]);
	});
});

it("tokens that come together share the time since the one before", async () => {
	const tracker = track();
	tracker.onTokens(2, 1000, 0);
	tracker.onTokens(4, 1400, 0);
	tracker.finish({ kind: "success" });
	const page = parsePrometheus(await metrics.registry.scrape());
	expect(page.value("dynamo_frontend_inter_token_latency_seconds_count")).toBe(5);
	expect(page.value("dynamo_frontend_inter_token_latency_seconds_sum")).toBeCloseTo(0.4);
});

it("a completion's lines stand in spans of its own, with the figures of the outer one", () => {
	const tracker = track("completions");
	tracker.workerId = 5n;
	tracker.onTokens(2, 1000, 0);
	tracker.finish({ kind: "success" });
	expect(lines.map(({ fields }) => fields.span_name)).toEqual(["completions_single", "completions_single"]);
	expect(lines[1]?.fields).toMatchObject({ output_tokens: "2", "request.outcome": "success", x_request_id: "x-1" });
	expect(ended.map(({ name }) => name)).toEqual(["completions_single", "completions", "http-request"]);
	expect(ended[0]?.parentId).toBe(ended[1]?.spanId);
	expect(ended[1]?.parentId).toBe(ended[2]?.spanId);
});

describe("NIM's counters", () => {
	it.each([
		["success", { kind: "success" }, "stop", "stop", 3],
		["success at the limit", { kind: "success" }, "length", "length", 3],
		["tool calls", { kind: "success" }, "tool_calls", "stop", 3],
		["a client that left", { kind: "disconnected" }, undefined, "abort", 3],
		["an outage", OUTCOMES[3]?.[1], undefined, "error", 0],
		["a refusal", OUTCOMES[2]?.[1], undefined, undefined, 0],
	] as [string, Outcome, string | undefined, string | undefined, number][])(
		"%s",
		async (_name, outcome, reason, counted, tokens) => {
			metrics.onSet({
				answers: true,
				publicNames: ["m"],
				modelTypes: new Set(["Chat"]),
				contextWindow: 0,
				card: {},
			} as unknown as WorkerSet);
			const tracker = track();
			tracker.inputTokens = 7;
			tracker.finishReason = reason;
			const running = async () => parsePrometheus(await metrics.registry.scrape());
			expect((await running()).value("num_requests_waiting")).toBe(1);
			for (let i = 0; i < tokens; i++) tracker.onTokens(1, performance.now(), 0);
			expect((await running()).value("num_requests_running")).toBe(tokens > 0 ? 1 : 0);
			tracker.finish(outcome);
			const page = await running();
			const success = counted === "stop" || counted === "length";
			expect(page.value("request_success_total")).toBe(success ? 1 : 0);
			expect(page.value("request_failure_total")).toBe(success || counted === undefined ? 0 : 1);
			const finished = page.select("request_finish_total").filter(({ value }) => value > 0);
			expect(finished.map(({ labels, value }) => [labels.finished_reason, value])).toEqual(
				counted === undefined ? [] : [[counted, 1]],
			);
			expect(page.value("e2e_request_latency_seconds_count")).toBe(success ? 1 : 0);
			expect(page.value("request_prompt_tokens_sum")).toBe(success ? 7 : 0);
			expect(page.value("request_generation_tokens_sum")).toBe(success ? 3 : 0);
			expect(page.value("prompt_tokens_total")).toBe(tokens > 0 ? 7 : 0);
			expect(page.value("generation_tokens_total")).toBe(tokens);
			expect(page.value("time_to_first_token_seconds_count")).toBe(tokens > 0 ? 1 : 0);
			expect(page.value("time_per_output_token_seconds_count")).toBe(Math.max(0, tokens - 1));
			expect(page.value("num_requests_running")).toBe(0);
			expect(page.value("num_requests_waiting")).toBe(0);
		},
	);
});
