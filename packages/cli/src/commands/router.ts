// SPDX-License-Identifier: Apache-2.0
import { ENV } from "@dynamo-ts/protocols/internal";
import { usageError } from "../cli-error.js";
import type { Command, CommandContext } from "../command.js";
import { ROUTER_COMMAND } from "../flags/router-flags.js";
import { checkPlanes, setRuntimeVariables } from "../flags/runtime-flags.js";
import { startRuntime } from "../start-runtime.js";

/** `dynamo router`: routing by cache and load, as a process of its own behind the request plane. */
export const command: Command = { spec: ROUTER_COMMAND, run };

async function run({ flags, console, lifecycle }: CommandContext): Promise<number> {
	checkPlanes("router", flags);
	const address = flags.string("endpoint");
	if (address === undefined) {
		throw usageError(
			`dynamo router needs the workers' endpoint: --endpoint NAMESPACE.COMPONENT.ENDPOINT (or ${ENV.DYN_ROUTER_ENDPOINT})`,
		);
	}
	const env: NodeJS.ProcessEnv = { ...flags.env };
	setRuntimeVariables(flags, env);
	const [{ parseEndpointAddress }, { EnvReader }, { kvRouterOptionsFromEnv, policyConfigFromEnv, StandaloneRouter }] =
		await Promise.all([
			import("@dynamo-ts/worker"),
			import("@dynamo-ts/runtime"),
			import("@dynamo-ts/router/internal"),
		]);
	const endpoint = parseEndpointAddress(address);
	const read = new EnvReader(env);
	// It routes for one endpoint, whatever its model is called: what the file says of single models is not for it.
	const profile = policyConfigFromEnv(read)?.profileOf("");
	const runtime = await startRuntime(lifecycle, env);
	const namespace = flags.string("namespace") ?? endpoint.namespace;
	const router = await StandaloneRouter.start(runtime, {
		endpoint,
		namespace,
		blockSize: flags.number("router-block-size"),
		kv: { ...kvRouterOptionsFromEnv(read), ...(profile === undefined ? {} : { profile }) },
	});
	lifecycle.onStop(() => router.close());
	lifecycle.markReady();
	console.out(`the router serves ${namespace}.router.generate for ${address.replace("dyn://", "")}\n`);
	return lifecycle.ended;
}
