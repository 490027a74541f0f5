// SPDX-License-Identifier: Apache-2.0
import type { Command, CommandContext } from "../command.js";
import { SERVE_COMMAND } from "../flags/model-flags.js";
import { startServingStack } from "../serving-stack.js";

/** `dynamo serve`: everything in one process, and a line to try it with. */
export const command: Command = { spec: SERVE_COMMAND, run };

async function run(context: CommandContext): Promise<number> {
	const { flags, console, lifecycle } = context;
	const { address, modelName, info } = await startServingStack(context, {
		model: flags.positionals[0] ?? flags.string("model"),
		host: flags.string("http-host")!,
		port: flags.number("http-port")!,
	});
	lifecycle.markReady();
	console.out(
		[
			`${modelName} is ready at ${address} after ${process.uptime().toFixed(1)} s (${info.device}, ${info.weightFormats?.join(" and ") || info.quantization}, ${info.maxModelLen} tokens of context)`,
			"",
			"try:",
			`  ${curlLine(address, modelName)}`,
			"",
			"Ctrl-C ends it.",
			"",
		].join("\n"),
	);
	return lifecycle.ended;
}

/** A request to paste into a shell. */
export function curlLine(address: string, model: string): string {
	const body = JSON.stringify({ model, messages: [{ role: "user", content: "What is the capital of France?" }] });
	return `curl ${address}/v1/chat/completions -H 'content-type: application/json' -d '${body.replaceAll("'", "'\\''")}'`;
}
