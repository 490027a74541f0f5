// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from "vitest";
import { f32Text } from "./float-text.js";
import { HttpError, SSE_DONE, STATUS_PHRASES, sseErrorEvent } from "./http-error.js";

describe("the body of an error", () => {
	it("has Dynamo's flat members and OpenAI's object", () => {
		const error = new HttpError(404, "Model not found", { code: "model_not_found", param: "model" });
		expect(JSON.stringify(error.toBody())).toBe(
			'{"error":{"message":"Model not found","type":"not_found_error","param":"model","code":"model_not_found"},' +
				'"message":"Model not found","type":"Not Found","code":404}',
		);
	});

	it.each([
		[400, "Bad Request", "invalid_request_error"],
		[401, "Unauthorized", "authentication_error"],
		[413, "Payload Too Large", "invalid_request_error"],
		[415, "Unsupported Media Type", "invalid_request_error"],
		[429, "Too Many Requests", "rate_limit_error"],
		[500, "Internal Server Error", "server_error"],
		[503, "Service Unavailable", "service_unavailable"],
		[504, "Gateway Timeout", "timeout_error"],
		[529, "Overloaded", "overloaded_error"],
	])("%d is %s", (status, phrase, type) => {
		const body = new HttpError(status, "x").toBody();
		expect([body.type, body.error.type, body.error.param, body.error.code]).toEqual([phrase, type, null, null]);
	});

	it("may have its own phrase, type and details", () => {
		const options = { phrase: "Overloaded", type: "overloaded_error", details: { backend_status: 500 } };
		expect(new HttpError(503, "x", options).toBody()).toMatchObject({
			type: "Overloaded",
			code: 503,
			error: { type: "overloaded_error" },
			details: { backend_status: 500 },
		});
	});

	it("knows the phrases of a fixed number of statuses", () => {
		expect(Object.keys(STATUS_PHRASES)).toHaveLength(18);
	});
});

describe("error events in a stream", () => {
	it.each([
		[503, "Service temporarily unavailable", "service_unavailable"],
		[504, "Request deadline exceeded", "timeout_error"],
		[500, "Internal server error", "internal_server_error"],
		[499, "Request cancelled", "request_cancelled"],
	])("%d", (status, message, type) => {
		expect(new HttpError(status, message).toSseEvent()).toBe(
			`data: {"error":{"message":"${message}","type":"${type}","code":${status}}}\n\n`,
		);
	});

	it("cannot be broken by a newline", () => {
		expect(sseErrorEvent(400, "a\n\nb", "messages").split("\n\n")).toHaveLength(2);
		expect(SSE_DONE).toBe("data: [DONE]\n\n");
	});
});

describe("f32Text", () => {
	it.each([
		[3, "3"],
		[2.01, "2.01"],
		[-0.1, "-0.1"],
		[2.0000002, "2.0000002"],
		[123456789, "123456790"],
		[16777217, "16777216"],
		[1e20, "100000000000000000000"],
		[2 ** 64, "18446744000000000000"],
		[-1e-7, "-0.0000001"],
		[-0, "-0"],
		[1e-46, "0"],
		[3.5e38, "inf"],
		[-1e300, "-inf"],
		[Number.NaN, "NaN"],
	])("%s is shown as Rust shows it", (value, text) => {
		expect(f32Text(value)).toBe(text);
	});
});
