// SPDX-License-Identifier: Apache-2.0
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type StreamExpectations, StreamValidator, validateStream } from "./stream-validator.js";

const CHAT: StreamExpectations = { kind: "chat" };

function chunk(choices: unknown[], extra: Record<string, unknown> = {}): string {
	const body = { id: "chatcmpl-1", choices, created: 7, model: "m", object: "chat.completion.chunk", ...extra };
	return `data: ${JSON.stringify(body)}\n\n`;
}
const delta = (d: Record<string, unknown>, finish: string | null = null, index = 0, more = {}) => ({
	index,
	delta: d,
	finish_reason: finish,
	logprobs: null,
	...more,
});
const FIRST = chunk([delta({ content: "Hé", role: "assistant" })]);
const NEXT = chunk([delta({ content: "llo" })]);
const LAST = chunk([delta({}, "stop")]);
const USAGE = chunk([], { usage: { prompt_tokens: 1, completion_tokens: 2, total_tokens: 3 } });
const DONE = "data: [DONE]\n\n";
const ERROR = `data: {"error":{"message":"Internal server error","type":"internal_server_error","code":500}}\n\n`;

function violations(text: string, expectations: StreamExpectations = CHAT): string {
	const validator = new StreamValidator(expectations);
	validator.push(text);
	try {
		validator.end();
		return "";
	} catch (error) {
		return (error as Error).message;
	}
}

describe("good streams", () => {
	it("sums up text, role and finish reason, whatever the split", () => {
		const bytes = new TextEncoder().encode(`: hello\n\n${FIRST}${NEXT}${LAST}${DONE}`);
		fc.assert(
			fc.property(fc.array(fc.nat(bytes.length), { maxLength: 20 }), (cuts) => {
				const validator = new StreamValidator(CHAT);
				const ends = [...cuts.sort((a, b) => a - b), bytes.length];
				let from = 0;
				for (const end of ends) {
					validator.push(bytes.subarray(from, end));
					from = end;
				}
				const summary = validator.end();
				expect(summary.choices).toEqual([
					{ index: 0, text: "Héllo", role: "assistant", finishReason: "stop", contentChunks: 2, logprobs: [] },
				]);
				expect(summary.comments).toEqual(["hello"]);
				expect(summary.done).toBe(true);
			}),
		);
	});

	it("knows the usage modes", () => {
		expect(validateStream(FIRST + LAST + USAGE + DONE, { kind: "chat", includeUsage: true }).usage).toEqual({
			prompt_tokens: 1,
			completion_tokens: 2,
			total_tokens: 3,
		});
		const usage = { prompt_tokens: 1, completion_tokens: 1, total_tokens: 2 };
		const first = chunk([delta({ content: "a", role: "assistant" })], { usage });
		const last = chunk([delta({}, "stop")], { usage });
		expect(violations(first + last + DONE, { kind: "chat", continuousUsage: true })).toBe("");
	});

	it("accepts an error event followed by [DONE] where one is expected", () => {
		expect(validateStream(FIRST + ERROR + DONE, { kind: "chat", expectError: true }).error?.code).toBe(500);
	});
});

describe("each broken rule is named", () => {
	const role = chunk([delta({ content: "x", role: "assistant" })]);
	it.each<[string, string, RegExp, StreamExpectations?]>([
		["role twice", FIRST + role + LAST + DONE, /role sent again/],
		["role late", chunk([delta({ content: "x" })]) + role + LAST + DONE, /role is not in the first chunk/],
		["no role", chunk([delta({ content: "x" })]) + LAST + DONE, /no role/],
		["no finish reason", FIRST + DONE, /no finish_reason/],
		["two finish reasons", FIRST + LAST + LAST + DONE, /a chunk after finish_reason/],
		["content after the finish reason", FIRST + LAST + NEXT + DONE, /a chunk after finish_reason/],
		["an unknown finish reason", FIRST + chunk([delta({}, "eos")]) + DONE, /finish_reason eos/],
		["no [DONE]", FIRST + LAST, /no \[DONE\]/],
		["[DONE] twice", FIRST + LAST + DONE + DONE, /\[DONE\] twice/],
		["an event after [DONE]", FIRST + LAST + DONE + NEXT, /event after \[DONE\]/],
		["usage nobody asked for", FIRST + LAST + USAGE + DONE, /1 usage chunk/],
		["no usage chunk", FIRST + LAST + DONE, /0 usage chunk/, { kind: "chat", includeUsage: true }],
		[
			"usage before the end",
			FIRST + USAGE + LAST + DONE,
			/before a finish_reason/,
			{ kind: "chat", includeUsage: true },
		],
		["usage in a chunk", FIRST + chunk([delta({}, "stop")], { usage: {} }) + DONE, /usage in an ordinary chunk/],
		["a missing choice", FIRST + LAST + DONE, /1 choice\(s\), expected 2/, { kind: "chat", choices: 2 }],
		["another id", FIRST + chunk([delta({}, "stop")], { id: "chatcmpl-2" }) + DONE, /id changed/],
		["another created", FIRST + chunk([delta({}, "stop")], { created: 8 }) + DONE, /created changed/],
		["another model", FIRST + LAST + DONE, /model is m, expected q/, { kind: "chat", model: "q" }],
		["the wrong object", FIRST + chunk([delta({}, "stop")], { object: "x" }) + DONE, /object is x/],
		["a broken character", FIRST + chunk([delta({ content: "\ufffd" })]) + LAST + DONE, /U\+FFFD/],
		["half a surrogate pair", FIRST + chunk([delta({ content: "\ud83d" })]) + LAST + DONE, /surrogate/],
		["an error event", FIRST + ERROR + DONE, /error event: Internal server error/],
		["an event after the error", FIRST + ERROR + NEXT + DONE, /between the error event and/],
		["no error event", FIRST + LAST + DONE, /no error event/, { kind: "chat", expectError: true }],
		[
			"logprobs nobody asked for",
			FIRST + chunk([delta({}, "stop", 0, { logprobs: { content: [] } })]) + DONE,
			/nobody/,
		],
		["text that is not JSON", `${FIRST}data: {\n\n${LAST}${DONE}`, /not JSON/],
		["a missing empty line", FIRST + LAST + DONE.trimEnd(), /empty line/],
	])("%s", (_name, text, message, expectations) => {
		expect(violations(text, expectations)).toMatch(message);
	});

	it("bytes that are not UTF-8", () => {
		const validator = new StreamValidator(CHAT);
		validator.push(Uint8Array.of(0xff));
		expect(() => validator.end()).toThrow(/not UTF-8/);
	});

	it("fewer logprobs than tokens", () => {
		const first = chunk([delta({ content: "x", role: "assistant" }, null, 0, { logprobs: { content: [{}] } })]);
		expect(violations(first + LAST + USAGE + DONE, { kind: "chat", includeUsage: true, logprobs: true })).toMatch(
			/1 logprobs entries for 2/,
		);
	});
});
