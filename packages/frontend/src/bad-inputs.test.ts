// SPDX-License-Identifier: Apache-2.0
import { readFileSync } from "node:fs";
import { DynamoError } from "@dynamo-ts/protocols/internal";
import { http } from "@dynamo-ts/testing/internal";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Script } from "./scripted-worker.js";
import { type Stack, startStack } from "./test-support/stack.js";

interface Recorded {
	readonly name: string;
	readonly request: {
		readonly method: string;
		readonly path: string;
		readonly headers: Record<string, string>;
		readonly body: string | null;
	};
	readonly status: number;
	readonly headers: Record<string, string>;
	readonly body: string;
}

/** Requests to Dynamo 1.6.1 before its simulated engine, and what it answered. */
const recorded = JSON.parse(
	readFileSync(new URL("../fixtures/bad_inputs.json", import.meta.url), "utf8"),
) as Recorded[];

/** Routes of other APIs, which this frontend does not have. */
const OTHER_APIS = /^\/(v1\/(responses|messages|embeddings)|docs|openapi)|^\/v1\/(admin|manifest|license)$/;
/** Where we answer otherwise on purpose. */
const ON_PURPOSE = new Map([
	["GET /v1/version", "Datadog's check for NIM asks for it and takes a 404 for a failure"],
	["completions: suffix", "filling gaps is refused, where Dynamo ignores the field"],
	["completions: context overflow", "checked before a worker is asked: 400, where Dynamo's engine fails with 500"],
]);

const cases = recorded.filter(
	({ request, name }) =>
		!OTHER_APIS.test(request.path) &&
		!ON_PURPOSE.has(name) &&
		// The recording cut long bodies.
		!/\.\.\. <\d+ bytes>/.test(request.body ?? ""),
);

/** As the simulated engine does, it wants to be told how long the answer may be. */
const script: Script = (call) => {
	const { max_tokens } = call.body.stop_conditions;
	if (max_tokens !== null) {
		const n = call.body.sampling_options.n ?? 1;
		for (let i = 0; i < n; i++) call.tokens([70, 71], i).finish("length", i);
		call.end();
		return;
	}
	const text = "`max_output_tokens` (or `max_tokens`) is required by the mocker worker";
	call.fail(new DynamoError("InvalidArgument", text, { publicMessage: text }));
};

let stack: Stack;
beforeAll(async () => {
	stack = await startStack();
	await stack.worker({ model: "smol", script });
});
afterAll(() => stack.close());

describe("recorded requests get the recorded answers", () => {
	it("there are many", () => {
		expect(cases.length).toBeGreaterThan(180);
	});

	it.each(cases.map((recording) => [recording.name, recording] as const))("%s", async (_name, recording) => {
		const { method, path, headers, body } = recording.request;
		const answer = await http(stack.url + path, { method, headers, ...(body === null ? {} : { body }) });
		expect(answer.status, answer.body).toBe(recording.status);
		expect(answer.headers["content-type"]).toBe(recording.headers["content-type"]);
		expect(answer.headers.allow).toBe(recording.headers.allow);
		if (recording.status < 400) return;
		if (recording.body === "") {
			expect(answer.body).toBe("");
			return;
		}
		// Dynamo's flat members as they are; OpenAI's object beside them.
		expect(answer.json).toMatchObject(JSON.parse(recording.body));
		// The routes for operators have a body of their own, the same as Dynamo's.
		if (path === "/busy_threshold") return;
		expect(answer.json.error).toMatchObject({ message: expect.any(String), type: expect.any(String) });
		expect(Object.keys(answer.json.error)).toEqual(["message", "type", "param", "code"]);
	});
});
