// SPDX-License-Identifier: Apache-2.0
import { writeFile } from "node:fs/promises";
import { ENV } from "@dynamo-ts/protocols/internal";
import type { Command, CommandContext } from "../command.js";
import { FRONTEND_COMMAND } from "../flags/frontend-flags.js";
import { checkPlanes, setRuntimeVariables } from "../flags/runtime-flags.js";
import { cacheDirs } from "../models/cache-dirs.js";
import { explainPort, startRuntime } from "../start-runtime.js";

/** `dynamo frontend`: the HTTP server alone; workers come through discovery. */
export const command: Command = { spec: FRONTEND_COMMAND, run };

async function run({ flags, console, lifecycle }: CommandContext): Promise<number> {
	checkPlanes("frontend", flags);
	const dump = flags.string("dump-config-to");
	if (dump !== undefined) await writeFile(dump, `${JSON.stringify(flags.values, null, 2)}\n`);
	if (flags.string("discovery-backend") === "mem") {
		console.note("dynamo frontend: mem discovery is within one process, so no worker will ever be found");
	}
	const env: NodeJS.ProcessEnv = { ...flags.env };
	setRuntimeVariables(flags, env);
	env[ENV.DYN_HTTP_HOST] = flags.string("http-host");
	env[ENV.DYN_HTTP_PORT] = String(flags.number("http-port"));
	env[ENV.DYN_MODEL_CACHE_DIR] ??= cacheDirs(env).fetchedCards;
	const [{ frontendConfigFromEnv, startFrontend }, runtime] = await Promise.all([
		import("@dynamo-ts/frontend"),
		startRuntime(lifecycle, env),
	]);
	await runtime.openClient();
	const config = frontendConfigFromEnv(env);
	const frontend = await startFrontend(runtime, config).catch((error: unknown) => {
		throw explainPort(error, config.port, "--http-port", ENV.DYN_HTTP_PORT);
	});
	lifecycle.onStop(async () => {
		await frontend.drain();
		await frontend.close();
	});
	lifecycle.markReady();
	console.out(`the frontend listens at ${frontend.address}\n`);
	return lifecycle.ended;
}
