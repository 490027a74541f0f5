// SPDX-License-Identifier: Apache-2.0
import { createServer, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import fc from "fast-check";
import { afterEach, expect, test } from "vitest";
import { ChatError, EventReader, listModels, streamChat } from "./chat-client.js";

let server: Server | undefined;
afterEach(async () => {
	server?.closeAllConnections();
	await new Promise((resolve) => (server === undefined ? resolve(undefined) : server.close(resolve)));
	server = undefined;
});

async function serve(answer: (path: string, body: string, response: ServerResponse) => void): Promise<string> {
	server = createServer((request, response) => {
		let body = "";
		request.on("data", (chunk) => {
			body += chunk;
		});
		request.on("end", () => answer(request.url ?? "", body, response));
	});
	await new Promise<void>((resolve) => server!.listen(0, "127.0.0.1", resolve));
	return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

function ask(url: string, onText: (text: string) => void = () => {}, signal = new AbortController().signal) {
	return streamChat({
		url,
		model: "m",
		messages: [{ role: "user", content: "hi" }],
		temperature: 0,
		maxTokens: 5,
		signal,
		onText,
	});
}

test("events come out whole, however the text is cut", () => {
	const events = ["one", "two\nlines", '{"é":"😀"}'];
	const text = `: comment\n\n${events
		.map((each) =>
			each
				.split("\n")
				.map((line) => `data: ${line}\n`)
				.join(""),
		)
		.join("\n")}\n`;
	fc.assert(
		fc.property(fc.array(fc.nat(text.length), { maxLength: 10 }), fc.boolean(), (cuts, crlf) => {
			const whole = crlf ? text.replaceAll("\n", "\r\n") : text;
			const got: string[] = [];
			const reader = new EventReader((data) => void got.push(data));
			let at = 0;
			for (const cut of [...cuts.sort((a, b) => a - b), whole.length]) {
				reader.push(whole.slice(at, cut));
				at = cut;
			}
			expect(got).toEqual(events);
		}),
	);
});

test("an answer: pieces, text, why it ended, usage; and what was asked", async () => {
	let asked: unknown;
	const url = await serve((_path, body, response) => {
		asked = JSON.parse(body);
		const chunk = (value: unknown) => response.write(`data: ${JSON.stringify(value)}\n\n`);
		chunk({ choices: [{ delta: { role: "assistant", content: "Par" }, finish_reason: null }] });
		chunk({ choices: [{ delta: { content: "is" }, finish_reason: "stop" }] });
		chunk({ choices: [], usage: { completion_tokens: 2 } });
		response.end("data: [DONE]\n\n");
	});
	const pieces: string[] = [];
	expect(await ask(url, (text) => void pieces.push(text))).toEqual({
		text: "Paris",
		finishReason: "stop",
		completionTokens: 2,
	});
	expect(pieces).toEqual(["Par", "is"]);
	expect(asked).toMatchObject({ model: "m", stream: true, temperature: 0, max_tokens: 5 });
});

test("the server's error is told, before and during a stream", async () => {
	const early = await serve((_path, _body, response) =>
		response.writeHead(404).end('{"error":{"message":"no such model"},"message":"x"}'),
	);
	await expect(ask(early)).rejects.toThrow(new ChatError("no such model"));
	server!.close();
	const late = await serve((_path, _body, response) => response.end('data: {"error":{"message":"worker lost"}}\n\n'));
	await expect(ask(late)).rejects.toThrow(new ChatError("worker lost"));
});

test("an answer can be stopped", async () => {
	const url = await serve((_path, _body, response) => {
		response.write('data: {"choices":[{"delta":{"content":"a"}}]}\n\n');
	});
	const controller = new AbortController();
	await expect(ask(url, () => controller.abort(), controller.signal)).rejects.toThrow(/abort/i);
});

test("models of a server", async () => {
	const url = await serve((_path, _body, response) => response.end('{"data":[{"id":"a"},{"id":"b"}]}'));
	expect(await listModels(url, new AbortController().signal)).toEqual(["a", "b"]);
});
