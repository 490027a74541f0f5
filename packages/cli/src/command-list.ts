// SPDX-License-Identifier: Apache-2.0
import type { Command } from "./command.js";

interface CommandEntry {
	readonly summary: string;
	load(): Promise<{ readonly command: Command }>;
}

/** The subcommands in the order of `dynamo --help`; a command's module is loaded when it runs. */
export const COMMANDS: Readonly<Record<string, CommandEntry>> = {
	serve: { summary: "HTTP server and workers in one process", load: () => import("./commands/serve.js") },
	frontend: { summary: "the HTTP server alone", load: () => import("./commands/frontend.js") },
	worker: { summary: "a worker with a model", load: () => import("./commands/worker.js") },
	mocker: { summary: "a worker with a simulated engine", load: () => import("./commands/mocker.js") },
	router: { summary: "routing by cache and load for other processes", load: () => import("./commands/router.js") },
	"kv-events-relay": {
		summary: "tell routers what another engine's KV cache holds",
		load: () => import("./commands/kv-events-relay.js"),
	},
	pull: { summary: "get a model", load: () => import("./commands/pull.js") },
	chat: { summary: "talk to a model in the terminal", load: () => import("./commands/chat.js") },
	top: { summary: "watch models, workers and their load", load: () => import("./commands/top.js") },
	doctor: { summary: "check this machine", load: () => import("./commands/doctor.js") },
};

/** The text of `dynamo --help`. */
export function overview(): string {
	const width = Math.max(...Object.keys(COMMANDS).map((name) => name.length)) + 2;
	const rows = Object.entries(COMMANDS).map(([name, { summary }]) => `  ${name.padEnd(width)}${summary}`);
	return [
		"usage: dynamo COMMAND [flags]",
		"",
		"Serves language models over an OpenAI-compatible API, on the wire of NVIDIA Dynamo.",
		"",
		"commands:",
		...rows,
		"",
		"dynamo COMMAND --help lists the flags of a command; dynamo --version shows the version.",
		"",
		"start here: dynamo serve",
		"",
	].join("\n");
}
