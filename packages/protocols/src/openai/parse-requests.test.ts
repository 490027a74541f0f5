// SPDX-License-Identifier: Apache-2.0
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { HttpError } from "./http-error.js";
import { parseChatCompletionRequest, parseCompletionRequest } from "./parse-requests.js";

const MESSAGES = [{ role: "user", content: "x" }];
const chat = (more: Record<string, unknown>, options = {}) =>
	parseChatCompletionRequest(JSON.stringify({ model: "m", messages: MESSAGES, ...more }), options);

function refusal(run: () => unknown): HttpError {
	try {
		run();
	} catch (error) {
		if (error instanceof HttpError) return error;
		throw error;
	}
	throw new Error("was not refused");
}

describe("a parsed request", () => {
	it("has the fields that were given; null means not given", () => {
		expect(chat({ temperature: 0.5, top_p: null, stop: ["a"], stream: null, nvext: null })).toEqual({
			model: "m",
			messages: MESSAGES,
			temperature: 0.5,
			stop: ["a"],
		});
	});

	it("keeps null inside of messages", () => {
		const messages = [
			{ role: "assistant", content: null, tool_calls: [{ id: "1", function: { name: "f", arguments: "{}" } }] },
		];
		expect(chat({ messages }).messages).toEqual(messages);
	});

	it("keeps 64-bit ids and seeds exact", () => {
		const request = parseChatCompletionRequest(
			`{"model":"m","messages":[{"role":"user","content":"x"}],"seed":-9223372036854775808,"nvext":{"backend_instance_id":18446744073709551615}}`,
		);
		expect(request.seed).toBe(-9223372036854775808n);
		expect(request.nvext?.backend_instance_id).toBe(18446744073709551615n);
	});

	it("has one name for the template's arguments", () => {
		expect(chat({ chat_template_kwargs: { a: 1 } }).chat_template_args).toEqual({ a: 1 });
	});

	it("is read from bytes that are part of a larger buffer", () => {
		const body = Buffer.from(`xx{"model":"m","prompt":"é"}yy`);
		expect(parseCompletionRequest(body.subarray(2, body.length - 2))).toEqual({ model: "m", prompt: "é" });
	});
});

describe("options", () => {
	it("unknown fields are refused in the order of the request, or dropped", () => {
		const error = refusal(() => chat({ zeta: 1, alpha: null, model: "m" }));
		expect(error.message).toBe("Validation: Unsupported parameter(s): `zeta`, `alpha`");
		expect([error.code, error.param]).toEqual(["unsupported_parameter", "zeta"]);
		expect(chat({ zeta: 1 }, { ignoreUnsupportedFields: true })).toEqual({ model: "m", messages: MESSAGES });
	});

	it("nvext is dropped after its types were checked", () => {
		expect(chat({ nvext: { dp_rank: 1 } }, { disableNvext: true }).nvext).toBeUndefined();
		expect(refusal(() => chat({ nvext: { dp_rank: "x" } }, { disableNvext: true })).status).toBe(400);
	});
});

describe("the field at fault", () => {
	it.each<[Record<string, unknown>, string | null]>([
		[{ temperature: 3 }, "temperature"],
		[{ temperature: "x" }, "temperature"],
		[{ messages: [{ role: "user", content: "x", name: 5 }] }, "messages[0].name"],
		[{ messages: [{ role: "user" }] }, "messages[0]"],
		[{ messages: undefined }, "messages"],
		[{ nvext: { agent_hints: { osl: -1 } } }, "nvext.agent_hints.osl"],
		[{ tools: [{ type: "function", function: { name: "a b" } }] }, "tools[0].function.name"],
		[{ guided_regex: "a", guided_choice: ["b"] }, "guided_choice"],
		[{ functions: [] }, "functions"],
		[{ stop: new Array(33).fill("a") }, "stop"],
	])("of %j is %s", (more, param) => {
		expect(refusal(() => chat(more)).param).toBe(param);
	});

	it("is unknown for text that is no JSON", () => {
		expect(refusal(() => parseChatCompletionRequest("{")).param).toBeNull();
	});
});

describe("positions", () => {
	it.each([
		['{\n "model": "é",\n "nvext": {\n  "dp_rank": "é"\n }\n}', "line 4 column 17"],
		['{"nvext": {"foo": 1}, "model": "m"}', "line 1 column 16"],
		['{"model":"é","messages":5}\n', "line 1 column 27"],
	])("of errors in %j", (body, position) => {
		expect(refusal(() => parseChatCompletionRequest(body)).message).toMatch(new RegExp(`${position}$`));
	});
});

describe("hostile bodies", () => {
	it("repeat only a part of a long string", () => {
		expect(refusal(() => chat({ n: "x".repeat(100_000) })).message.length).toBeLessThan(1000);
		expect(refusal(() => chat({ reasoning_effort: "x".repeat(100_000) })).message.length).toBeLessThan(1000);
	});

	it("cannot nest without end", () => {
		const deep = `${"[".repeat(100_000)}${"]".repeat(100_000)}`;
		for (const field of ["guided_json", "metadata", "logit_bias"]) {
			const body = `{"model":"m","messages":[{"role":"user","content":"x"}],"${field}":${deep}}`;
			expect(refusal(() => parseChatCompletionRequest(body)).status).toBe(400);
		}
	});

	it("__proto__ is an unknown field like any other", () => {
		const body = `{"model":"m","messages":[{"role":"user","content":"x"}],"__proto__":{"temperature":3}}`;
		expect(refusal(() => parseChatCompletionRequest(body)).message).toContain("`__proto__`");
	});

	it("are refused with 400 or 501, whatever they are", () => {
		const json = fc.jsonValue();
		const field = fc.constantFrom(
			...[
				"model",
				"messages",
				"prompt",
				"temperature",
				"stop",
				"tools",
				"tool_choice",
				"nvext",
				"logit_bias",
				"n",
				"seed",
			],
			...["response_format", "stream_options", "guided_json", "guided_choice", "thinking", "functions", "zzz"],
		);
		fc.assert(
			fc.property(fc.dictionary(field, json), (fields) => {
				const body = JSON.stringify({ model: "m", messages: MESSAGES, prompt: "p", ...fields });
				for (const parse of [parseChatCompletionRequest, parseCompletionRequest]) {
					try {
						parse(body, { ignoreUnsupportedFields: true });
					} catch (error) {
						expect(error).toBeInstanceOf(HttpError);
						expect([400, 501]).toContain((error as HttpError).status);
					}
				}
			}),
			{ numRuns: 300 },
		);
	});

	it("of any text are told where they break", () => {
		fc.assert(
			fc.property(
				fc.oneof(
					fc.string(),
					fc.json().map((text) => text.slice(0, -1)),
				),
				(text) => {
					let broken = false;
					try {
						JSON.parse(text);
					} catch {
						broken = true;
					}
					if (!broken) return;
					expect(refusal(() => parseChatCompletionRequest(text)).message).toMatch(/ at line \d+ column \d+$/);
				},
			),
		);
	});
});
