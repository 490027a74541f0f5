// SPDX-License-Identifier: Apache-2.0
import { EXIT } from "../cli-error.js";
import type { Command, CommandContext } from "../command.js";
import { DOCTOR_CHECKS } from "../doctor-checks.js";
import type { CommandSpec } from "../flags/flag-spec.js";
import { httpFlags } from "../flags/frontend-flags.js";

const SPEC: CommandSpec = {
	name: "doctor",
	summary: "Checks what serving needs on this machine, one line each with the cure; exit code 1 if something fails.",
	flags: [...httpFlags("127.0.0.1")],
};

/** `dynamo doctor`. */
export const command: Command = { spec: SPEC, run };

async function run({ flags, console }: CommandContext): Promise<number> {
	const context = { env: flags.env, host: flags.string("http-host")!, port: flags.number("http-port")! };
	let failed = 0;
	let warned = 0;
	const results = await Promise.all(
		DOCTOR_CHECKS.map(async (check) => {
			try {
				return await check(context);
			} catch (error) {
				return { level: "warn" as const, text: `a check broke: ${(error as Error).message}`, cure: undefined };
			}
		}),
	);
	for (const { level, text, cure } of results) {
		if (level === "fail") failed++;
		if (level === "warn") warned++;
		console.out(`${level.padEnd(5)} ${text}${cure === undefined ? "" : `; ${cure}`}\n`);
	}
	console.out(`${failed} failed, ${warned} to look at, ${results.length - failed - warned} good\n`);
	return failed > 0 ? EXIT.failure : EXIT.ok;
}
