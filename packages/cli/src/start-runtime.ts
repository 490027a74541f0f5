// SPDX-License-Identifier: Apache-2.0
import { ENV } from "@dynamo-ts/protocols/internal";
import type { DistributedRuntime, RuntimeConfig } from "@dynamo-ts/runtime";
import { CliError } from "./cli-error.js";
import type { Lifecycle } from "./lifecycle.js";
import { version } from "./version.js";

type Env = Readonly<Record<string, string | undefined>>;

/**
 * Starts the runtime of a process with the settings of an environment; its shutdown becomes a stop step.
 * @throws DynamoError for bad settings; CliError for a taken system port.
 */
export async function startRuntime(
	lifecycle: Lifecycle,
	env: Env,
	overrides: Partial<RuntimeConfig> = {},
): Promise<DistributedRuntime> {
	const { DistributedRuntime, FileDiscovery, runtimeConfigFromEnv } = await import("@dynamo-ts/runtime/internal");
	// What reads the process' environment later on must not see what the flags overrode.
	for (const [name, value] of Object.entries(env)) if (value !== process.env[name]) process.env[name] = value;
	const config = runtimeConfigFromEnv(env, overrides);
	try {
		const runtime = await DistributedRuntime.create(config, lifecycle.signal);
		const { discovery } = runtime;
		if (discovery instanceof FileDiscovery) lifecycle.onKill(() => discovery.removeOwnFilesNow());
		lifecycle.onStop(() => runtime.shutdown());
		runtime.log.child("dynamo").debug("runtime started", { version: version(), instance_id: runtime.instanceId });
		return runtime;
	} catch (error) {
		throw explainPort(error, config.systemPort, undefined, ENV.DYN_SYSTEM_PORT);
	}
}

/** One line for an address that cannot be listened on: the port, the flag and the variable. Other errors stay as they are. */
export function explainPort(error: unknown, port: number, flag: string | undefined, variable: string): unknown {
	let code: string | undefined;
	for (let inner: unknown = error; inner instanceof Error && code === undefined; inner = inner.cause) {
		code = (inner as NodeJS.ErrnoException).code;
		if (code !== "EADDRINUSE" && code !== "EACCES" && code !== "EADDRNOTAVAIL") code = undefined;
	}
	const choose = `choose another with ${flag === undefined ? variable : `${flag} (or ${variable})`}`;
	switch (code) {
		case "EADDRINUSE":
			return new CliError(`port ${port} is taken by another process: ${choose}`, 1, { cause: error });
		case "EACCES":
			return new CliError(`port ${port} may not be used by this user: ${choose}, above 1023`, 1, { cause: error });
		case "EADDRNOTAVAIL": {
			const host = variable.replace("_PORT", "_HOST");
			const name = flag === undefined ? host : `${flag.replace("-port", "-host")} (or ${host})`;
			return new CliError(`the address to listen on is none of this machine's: change ${name}`, 1, { cause: error });
		}
		default:
			return error;
	}
}
