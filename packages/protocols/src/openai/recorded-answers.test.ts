// SPDX-License-Identifier: Apache-2.0
// What Dynamo 1.6.1's frontend answered, put to our parser: status and message must be the same, positions included.
import { describe, expect, it } from "vitest";
import { fixture, fixtureLines } from "../testing/fixtures.js";
import { HttpError } from "./http-error.js";
import { parseChatCompletionRequest, parseCompletionRequest } from "./parse-requests.js";

interface Answer {
	status: number;
	message?: string;
}

function answer(route: string, body: string): Answer {
	try {
		if (route === "chat") parseChatCompletionRequest(body);
		else parseCompletionRequest(body);
		return { status: 200 };
	} catch (error) {
		if (!(error instanceof HttpError)) throw error;
		return { status: error.status, message: error.message };
	}
}

describe("bad_inputs", () => {
	interface Recorded {
		name: string;
		path: string;
		contentType: string;
		request: string;
		status: number;
		message?: string;
	}
	/** Refused later: by the template, the router, the worker, or for another reason than the body. */
	const LATER = new Set([
		"Invalid request",
		"Internal server error",
		"Model not found",
		"`max_output_tokens` (or `max_tokens`) is required by the mocker worker",
	]);
	/** Bodies that were shortened when they were recorded. */
	const wholeBody = ({ request }: Recorded): boolean => !/\.\.\. <\d+ bytes>$/.test(request);
	const all = JSON.parse(fixture("http/bad-inputs-completions.json").toString("utf8")) as Recorded[];
	const cases = all.filter((recorded) => recorded.contentType.startsWith("application/json") && wholeBody(recorded));

	it("are many", () => {
		expect(all.length).toBe(159);
		expect(cases.length).toBeGreaterThan(150);
		expect(cases.filter(({ status }) => status === 400 || status === 501).length).toBeGreaterThan(95);
	});

	it.each(cases)("$name", ({ path, request, status, message }) => {
		const expected: Answer = status === 200 || LATER.has(message ?? "") ? { status: 200 } : { status, message };
		expect(answer(path === "/v1/completions" ? "completions" : "chat", request)).toEqual(expected);
	});
});

type Row = [route: string, body: string, status: number, message: string];

describe("recorded answers", () => {
	const rows = fixtureLines<Row>("openai/recorded-answers.jsonl");

	it("are all the same", () => {
		expect(rows.length).toBeGreaterThan(2000);
		const wrong = rows.flatMap(([route, body, status, message]) => {
			// The model does not exist there: 404 means that the body was good.
			const expected: Answer = status === 404 ? { status: 200 } : { status, message };
			const got = answer(route, body);
			return got.status === expected.status && got.message === expected.message ? [] : [{ route, body, expected, got }];
		});
		expect(wrong).toEqual([]);
	});
});

describe("answers that are others on purpose", () => {
	/** Why we differ, told by the body. */
	const REASONS: readonly [reason: string, body: RegExp][] = [
		["an array in the place of a struct is refused", /": \[(1|"x")?\]/],
		["a tag that is a number is told as what it is", /"(role|type)": 5/],
		["a word as {word: null} is refused", /\{"(auto|low|zz)": (null|1)\}/],
		["doubled members inside of nvext: the last one counts", /"dp_rank".*"dp_rank"/],
		["a float with nothing behind the point is told as an integer", /"model": (5\.0|1e\+16|1\.2345678901234568e\+17)/],
		["what follows a wrong direct field is read first", /"nvext":5,"a":tru/],
		["an invisible character in an echoed string is shown as it is", /\\u200b/],
	];
	const rows = fixtureLines<Row>("openai/deviations.jsonl");

	it.each(rows)("%s %s", (route, body, status, message) => {
		expect(REASONS.some(([, pattern]) => pattern.test(body))).toBe(true);
		const got = answer(route, body);
		expect([200, 400]).toContain(got.status);
		expect(got).not.toEqual(status === 404 ? { status: 200 } : { status, message });
	});
});
