// SPDX-License-Identifier: Apache-2.0
import { ENV, isDynamoError } from "@dynamo-ts/protocols/internal";
import { CliError, EXIT, usageError } from "./cli-error.js";
import { COMMANDS, overview } from "./command-list.js";
import type { Console } from "./console.js";
import { closest } from "./flags/closest.js";
import { helpText } from "./flags/help-text.js";
import { parseFlags } from "./flags/parse-flags.js";
import { Lifecycle } from "./lifecycle.js";
import { version } from "./version.js";

/**
 * Runs one command line.
 * @param argv without node and script.
 * @returns the exit code.
 */
export async function runCli(argv: readonly string[], env: NodeJS.ProcessEnv, console: Console): Promise<number> {
	const lifecycle = new Lifecycle(console);
	try {
		return await dispatch(argv, env, console, lifecycle);
	} catch (error) {
		return report(error, env, console);
	}
}

async function dispatch(
	argv: readonly string[],
	env: NodeJS.ProcessEnv,
	console: Console,
	lifecycle: Lifecycle,
): Promise<number> {
	const [name, ...rest] = argv;
	if (name === undefined || name === "--help" || name === "-h") {
		console.out(overview());
		return name === undefined ? EXIT.usage : EXIT.ok;
	}
	if (name === "--version" || name === "version") {
		console.out(`dynamo ${version()}\n`);
		return EXIT.ok;
	}
	if (name === "help") {
		if (rest.length === 0) {
			console.out(overview());
			return EXIT.ok;
		}
		return dispatch([rest[0]!, "--help"], env, console, lifecycle);
	}
	if (!Object.hasOwn(COMMANDS, name)) {
		const near = closest(name, Object.keys(COMMANDS));
		const kind = name.startsWith("-") ? "flag" : "command";
		throw usageError(
			`unknown ${kind} ${name}${near === undefined ? "" : `; did you mean dynamo ${near}?`} (dynamo --help lists all commands)`,
		);
	}
	const { command } = await COMMANDS[name]!.load();
	const flags = parseFlags(command.spec, rest, env);
	if (flags.help) {
		console.out(helpText(command.spec));
		return EXIT.ok;
	}
	if (flags.version) {
		console.out(`dynamo ${version()}\n`);
		return EXIT.ok;
	}
	for (const notice of flags.notices) console.note(`dynamo ${name}: ${notice}`);
	lifecycle.listen();
	const running = command.run({ flags, console, lifecycle });
	// After a signal its end is no longer waited for, so nobody else looks at its error.
	running.catch(() => {});
	try {
		return await Promise.race([running, lifecycle.ended]);
	} catch (error) {
		if (lifecycle.stopping) return await lifecycle.ended;
		const code = report(error, env, console);
		lifecycle.stop(code);
		return await lifecycle.ended;
	}
}

/** One line for the person at the terminal; the stack only for who asked for debug output. */
function report(error: unknown, env: NodeJS.ProcessEnv, console: Console): number {
	const message = messageOf(error);
	console.note(`dynamo: ${message.replaceAll(/\s*\n\s*/g, " ")}`);
	if (/debug|trace/.test(env[ENV.DYN_LOG] ?? "") && error instanceof Error && error.stack !== undefined) {
		console.note(error.stack);
	}
	if (error instanceof CliError) return error.exitCode;
	// A setting: its error names the variable.
	const isSetting = isDynamoError(error) && error.errorClass === "InvalidArgument" && (error.param ?? "") in ENV;
	return isSetting ? EXIT.usage : EXIT.failure;
}

function messageOf(error: unknown): string {
	if (isDynamoError(error)) return error.publicMessage ?? error.message;
	if (error instanceof Error) return error.message === "" ? error.name : error.message;
	return String(error);
}
