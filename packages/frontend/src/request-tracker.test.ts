// SPDX-License-Identifier: Apache-2.0
import { DynamoError } from "@dynamo-ts/protocols/internal";
import type { LogFields, Logger, LogLevel } from "@dynamo-ts/runtime";
import { parsePrometheus } from "@dynamo-ts/testing/internal";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { frontendConfigFromEnv } from "./config.js";
import { FrontendMetrics } from "./frontend-metrics.js";
import { failureOf } from "./http-errors.js";
import { type Outcome, RequestTracker } from "./request-tracker.js";

const lines: { level: LogLevel; message: string; fields: LogFields }[] = [];
const log = {
	target: "test",
	isEnabled: () => true,
	error: (message: string, fields: LogFields = {}) => void lines.push({ level: "error", message, fields }),
	info: (message: string, fields: LogFields = {}) => void lines.push({ level: "info", message, fields }),
} as unknown as Logger;

let metrics: FrontendMetrics;
beforeEach(() => {
	lines.length = 0;
	metrics = new FrontendMetrics("dynamo_frontend", frontendConfigFromEnv({}).buckets);
});
afterEach(() => metrics.close());

function track(): RequestTracker {
	return new RequestTracker(
		{
			endpoint: "chat_completions",
			model: "m",
			stream: true,
			requestId: "id-1",
			xRequestId: "x-1",
			uri: "/v1/chat/completions",
			receivedAt: performance.now(),
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
		"info",
	],
	[
		"an outage",
		{ kind: "failure", failure: failureOf(new DynamoError("Disconnected", "x")) },
		"error",
		"unavailable",
		"info",
	],
	["a bug", { kind: "failure", failure: failureOf(new Error("x")) }, "error", "internal", "error"],
];

describe.each(OUTCOMES)("%s", (_name, outcome, status, errorType, level) => {
	it.each([0, 3])("is counted once, gauges come down, two lines are written (%s tokens)", async (tokens) => {
		const tracker = track();
		tracker.enterStage("preprocess");
		tracker.inputTokens = 7;
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
			expect(fields).toMatchObject({ request_id: "id-1", x_request_id: "x-1", model: "m", request_type: "stream" });
		}
		expect(lines[1]).toMatchObject({
			level,
			fields: { status, input_tokens: 7, output_tokens: tokens, elapsed_ms: expect.any(Number) },
		});
		expect(typeof lines[1]?.fields.ttft_ms).toBe(tokens === 0 ? "undefined" : "string");
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
