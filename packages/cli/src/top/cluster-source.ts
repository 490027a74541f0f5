// SPDX-License-Identifier: Apache-2.0
// Where `dynamo top` gets the cluster from: a frontend's dashboard where there is one, else discovery and pages of metrics,
// which work with frontends and workers of NVIDIA Dynamo too.
import type { ClusterSnapshot } from "@dynamo-ts/frontend/internal";
import { ENV } from "@dynamo-ts/protocols/internal";
import { CliError } from "../cli-error.js";
import type { CommandContext } from "../command.js";
import { setRuntimeVariables } from "../flags/runtime-flags.js";
import { startRuntime } from "../start-runtime.js";

/** Longest wait for an answer of a frontend, and for discovery to answer the first time, milliseconds. */
const ANSWER_MS = 5000;
const DISCOVERY_MS = 10_000;

/** Gives the cluster as it is now. @throws CliError when it cannot be had any more. */
export type ClusterSource = () => Promise<ClusterSnapshot>;

/** @throws CliError when neither the frontend nor discovery answers. */
export async function openClusterSource(context: CommandContext): Promise<ClusterSource> {
	const { flags, lifecycle } = context;
	const given = flags.string("url")?.replace(/\/+$/, "").replace(/\/v1$/, "");
	if (given !== undefined && !/^https?:\/\/./.test(given)) {
		throw new CliError(`--url "${given}" is not valid: http://HOST:PORT is expected`, 2);
	}
	const url = given ?? `http://127.0.0.1:${flags.env[ENV.DYN_HTTP_PORT] || 8000}`;
	const dashboard = await askDashboard(url, lifecycle.signal);
	if (typeof dashboard !== "string") {
		return async () => {
			const answer = await askDashboard(url, lifecycle.signal);
			if (typeof answer === "string") throw new CliError(`the frontend at ${url} is gone: ${answer}`);
			return answer;
		};
	}
	return watchDiscovery(context, url, dashboard);
}

/** @returns why there is none. */
async function askDashboard(url: string, signal: AbortSignal): Promise<ClusterSnapshot | string> {
	try {
		const deadline = AbortSignal.any([signal, AbortSignal.timeout(ANSWER_MS)]);
		// History is for charts.
		const answer = await fetch(`${url}/dashboard/data?since=${Number.MAX_SAFE_INTEGER}`, { signal: deadline });
		const type = answer.headers.get("content-type") ?? "";
		if (answer.status !== 200 || !type.startsWith("application/json"))
			return `it has no dashboard (status ${answer.status})`;
		const view = (await answer.json()) as ClusterSnapshot;
		return view.version === 1 ? view : "its dashboard is of another version";
	} catch (error) {
		if (signal.aborted) throw error;
		const { message, cause } = error as Error;
		return cause instanceof Error && cause.message !== "" ? cause.message : message;
	}
}

async function watchDiscovery(context: CommandContext, url: string, why: string): Promise<ClusterSource> {
	const { flags, lifecycle } = context;
	if (flags.string("discovery-backend") === "mem") {
		throw new CliError(
			`no dashboard at ${url} (${why}), and mem discovery shows nothing of other processes: give --url`,
		);
	}
	const env: NodeJS.ProcessEnv = { ...flags.env };
	setRuntimeVariables(flags, env);
	// Lines of a log would stand in the middle of the table.
	env[ENV.DYN_LOG] = flags.env[ENV.DYN_LOG] || "off";
	// The ports of a worker that was started with the same settings are not this process' own.
	env[ENV.DYN_SYSTEM_PORT] = "-1";
	const { ClusterCollector, readPage } = await import("@dynamo-ts/frontend/internal");
	const missing = (reason: string, cause?: unknown) =>
		new CliError(
			`no dashboard at ${url} (${why}), and discovery by ${flags.string("discovery-backend")} does not answer (${reason}): give --url of a frontend, or the discovery settings of the cluster`,
			1,
			{ cause },
		);
	const open = async (): Promise<ClusterSource> => {
		const runtime = await startRuntime(lifecycle, env);
		const collector = new ClusterCollector({
			runtime,
			frontendPage: (signal) => readPage(`${url}/metrics`, signal),
			metricsPrefix: env[ENV.DYN_METRICS_PREFIX] || undefined,
		});
		lifecycle.onStop(() => collector.close());
		await collector.start();
		return async () => collector.snapshot(Number.MAX_SAFE_INTEGER);
	};
	let timer: NodeJS.Timeout | undefined;
	const late = new Promise<never>((_, reject) => {
		timer = setTimeout(() => reject(missing(`${DISCOVERY_MS / 1000} seconds passed`)), DISCOVERY_MS);
	});
	try {
		return await Promise.race([open(), late]);
	} catch (error) {
		if (error instanceof CliError || lifecycle.signal.aborted) throw error;
		throw missing((error as Error).message, error);
	} finally {
		clearTimeout(timer);
	}
}
