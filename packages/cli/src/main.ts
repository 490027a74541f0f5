// SPDX-License-Identifier: Apache-2.0
import { processConsole } from "./console.js";
import { runCli } from "./run-cli.js";

const console = processConsole();

// A promise that nobody waited for must not take the running requests with it; it is a bug all the same.
process.on("unhandledRejection", (reason) => {
	const text = reason instanceof Error ? (reason.stack ?? reason.message) : String(reason);
	console.note(`dynamo: unhandled rejection (please report this): ${text}`);
});

const code = await runCli(process.argv.slice(2), process.env, console);
// Ends idle sockets, timers and threads too.
process.exit(code);
