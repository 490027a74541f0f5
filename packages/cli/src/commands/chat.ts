// SPDX-License-Identifier: Apache-2.0
import { createInterface, type Interface } from "node:readline";
import { ENV } from "@dynamo-ts/protocols/internal";
import { ChatError, type ChatTurn, listModels, streamChat } from "../chat/chat-client.js";
import { CliError, EXIT } from "../cli-error.js";
import type { Command, CommandContext } from "../command.js";
import type { CommandSpec } from "../flags/flag-spec.js";
import { SERVE_COMMAND } from "../flags/model-flags.js";
import { startServingStack } from "../serving-stack.js";

const SPEC: CommandSpec = {
	name: "chat",
	summary: "Talks to a model in the terminal: to a running server, or to one of its own.",
	positionals: SERVE_COMMAND.positionals ?? [],
	flags: [
		{
			flag: "url",
			type: "string",
			defaultText: "http://127.0.0.1:8000 if a server answers there, else a server of its own",
			help: "Address of a running server.",
		},
		{ flag: "system", type: "string", help: "System message." },
		{ flag: "temperature", type: "number", min: 0, max: 2, help: "0 always gives the likeliest token." },
		{ flag: "max-tokens", type: "integer", min: 1, help: "Longest answer, in tokens." },
		...SERVE_COMMAND.flags.filter(({ flag }) => flag !== "http-host"),
	],
	epilog: ["in the chat: /reset forgets the conversation, /exit or Ctrl-D ends; Ctrl-C stops an answer, twice ends"],
};

/** `dynamo chat`. */
export const command: Command = { spec: SPEC, run };

async function run(context: CommandContext): Promise<number> {
	const { flags, console, lifecycle } = context;
	const server = await findServer(context);
	lifecycle.markReady();
	console.note(`talking to ${server.model} at ${server.url}; /reset forgets, /exit or Ctrl-D ends`);
	await converse(context, server);
	lifecycle.stop(EXIT.ok);
	void flags;
	return lifecycle.ended;
}

interface Server {
	readonly url: string;
	readonly model: string;
}

async function findServer(context: CommandContext): Promise<Server> {
	const { flags, lifecycle } = context;
	const wanted = flags.string("model-name");
	const given = flags.string("url")?.replace(/\/+$/, "").replace(/\/v1$/, "");
	if (given !== undefined && !/^https?:\/\/./.test(given)) {
		throw new CliError(`--url "${given}" is not valid: http://HOST:PORT is expected`, EXIT.usage);
	}
	const model = flags.positionals[0] ?? flags.string("model");
	const url = given ?? (model === undefined ? `http://127.0.0.1:${flags.number("http-port")}` : undefined);
	if (url !== undefined) {
		let models: string[] | undefined;
		try {
			models = await listModels(url, AbortSignal.any([lifecycle.signal, AbortSignal.timeout(3000)]));
		} catch (error) {
			if (lifecycle.signal.aborted) throw error;
			if (given !== undefined) {
				throw new CliError(`no server answers at ${url}: start one with \`dynamo serve\`, or leave --url out`, 1, {
					cause: error,
				});
			}
		}
		if (models !== undefined && (given !== undefined || models.length > 0)) {
			const chosen = wanted ?? model ?? models[0];
			if (chosen !== undefined && models.includes(chosen)) return { url, model: chosen };
			throw new CliError(
				chosen === undefined
					? `the server at ${url} has no model yet; start a worker`
					: `the server at ${url} has no model ${chosen}; it has ${models.join(", ") || "none yet"}`,
			);
		}
	}
	const stack = await startServingStack(context, {
		model,
		host: "127.0.0.1",
		port: 0,
		// Log lines would stand in the middle of the conversation.
		env: { [ENV.DYN_LOG]: flags.env[ENV.DYN_LOG] ?? "error" },
	});
	return { url: stack.address, model: stack.modelName };
}

async function converse(context: CommandContext, server: Server): Promise<void> {
	const { flags, console, lifecycle } = context;
	const terminal = process.stdin.isTTY === true;
	const system = flags.string("system");
	const opening: ChatTurn[] = system === undefined ? [] : [{ role: "system", content: system }];
	let messages = [...opening];
	let answer: AbortController | undefined;
	const input = createInterface({ input: process.stdin, output: terminal ? process.stdout : undefined, prompt: "> " });
	lifecycle.onStop(() => {
		answer?.abort();
		input.close();
	});
	let asked = false;
	input.on("SIGINT", () => {
		if (answer !== undefined) {
			answer.abort();
			return;
		}
		if (asked) input.close();
		else {
			asked = true;
			console.note("\nCtrl-C again ends the chat");
			input.prompt();
		}
	});

	for await (const line of lines(input, terminal)) {
		asked = false;
		const text = line.trim();
		if (text === "") continue;
		if (text === "/exit" || text === "/quit") break;
		if (text === "/reset") {
			messages = [...opening];
			console.note("forgotten");
			continue;
		}
		messages.push({ role: "user", content: text });
		answer = new AbortController();
		try {
			const result = await streamChat({
				url: server.url,
				model: server.model,
				messages,
				temperature: flags.number("temperature"),
				maxTokens: flags.number("max-tokens"),
				signal: answer.signal,
				onText: (piece) => console.out(piece),
			});
			console.out("\n");
			if (result.finishReason === "length") console.note("(cut off at the length limit)");
			messages.push({ role: "assistant", content: result.text });
		} catch (error) {
			// The question stays out of the conversation, as it has no answer.
			messages.pop();
			console.out("\n");
			if (answer.signal.aborted) console.note("(stopped)");
			else if (error instanceof ChatError) console.note(`error: ${error.message}`);
			else throw new CliError(`the server at ${server.url} is gone`, 1, { cause: error });
		} finally {
			answer = undefined;
		}
		if (lifecycle.stopping) break;
	}
	input.close();
}

async function* lines(input: Interface, terminal: boolean): AsyncGenerator<string> {
	// The iterator keeps lines that come while an answer streams.
	const iterator = input[Symbol.asyncIterator]();
	for (;;) {
		if (terminal) input.prompt();
		const next = await iterator.next();
		if (next.done === true) return;
		yield next.value;
	}
}
