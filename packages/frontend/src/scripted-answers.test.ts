// SPDX-License-Identifier: Apache-2.0
// What Dynamo 1.6.1's frontend answered before a worker whose items are written down here, byte for byte. Ids and the
// time of creation are masked.
import { readFileSync } from "node:fs";
import { http, validateStream } from "@dynamo-ts/testing/internal";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { ScriptedCall } from "./scripted-worker.js";
import { type Stack, startStack } from "./test-support/stack.js";

interface Recorded {
	readonly name: string;
	readonly path: string;
	readonly request: Record<string, unknown>;
	/** What the worker sends, all at once, before it ends its stream. */
	readonly items: Parameters<ScriptedCall["response"]["send"]>[0][];
	readonly status: number;
	readonly type: string;
	readonly body: string;
}

const recorded = readFileSync(new URL("../fixtures/scripted-answers.jsonl", import.meta.url), "utf8")
	.split("\n")
	.filter((line) => line !== "")
	.map((line) => JSON.parse(line) as Recorded);

function masked(body: string): string {
	return body
		.replace(/(chatcmpl|cmpl)-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/g, "$1-ID")
		.replace(/"created":\d+/g, '"created":0');
}

let stack: Stack;
let items: Recorded["items"] = [];
beforeAll(async () => {
	stack = await startStack({}, { inhibitedDurationMs: 0 });
	await stack.worker({
		script: (call) => {
			for (const item of items) call.response.send(item);
			call.end();
		},
	});
});
afterAll(() => stack.close());

describe("scripted workers get the recorded answers", () => {
	it("there are many", () => {
		expect(recorded.length).toBeGreaterThan(250);
	});

	it.each(recorded.map((recording) => [recording.name, recording] as const))("%s", async (_name, recording) => {
		const { path, request, status, type, body } = recording;
		items = recording.items;
		const answer = await http(stack.url + path, { body: request });
		expect([answer.status, answer.headers["content-type"]]).toEqual([status, type]);
		if (status === 200) {
			expect(masked(answer.body)).toBe(body);
			return;
		}
		const { error, ...flat } = answer.json;
		expect(JSON.stringify(flat)).toBe(body);
		expect(error.message).toBe(flat.message);
	});

	it("all recorded streams are good ones", () => {
		for (const { name, path, request, type, body } of recorded) {
			if (type !== "text/event-stream") continue;
			const options = request.stream_options as Record<string, boolean>;
			const summary = validateStream(body, {
				kind: path.includes("chat") ? "chat" : "completions",
				includeUsage: options.include_usage === true,
				continuousUsage: options.continuous_usage_stats === true && options.include_usage === true,
				logprobs: request.logprobs === true,
				expectError: "either",
				choices: body.includes('"index":1') ? 2 : 1,
			});
			expect(summary.done, name).toBe(true);
		}
	});
});
