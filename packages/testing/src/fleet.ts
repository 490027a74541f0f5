// SPDX-License-Identifier: Apache-2.0
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ENV } from "@dynamo-ts/protocols/internal";
import { type Child, until } from "./child-process.js";
import { freePort } from "./free-port.js";
import { findNatsServer, NatsServer } from "./nats-server.js";
import { startDynamo, startExample, startOwnHttp } from "./own-processes.js";
import { type PromPage, parsePrometheus } from "./prom-parse.js";
import { fileDiscoveryEnv, type HttpChild } from "./real-dynamo.js";
import { http } from "./sse-client.js";

/** A worker process whose metrics can be read. */
export interface WorkerChild {
	readonly child: Child;
	/** Base address of its system server. */
	readonly system: string;
}

/** Gauges of the frontend that are 0 whenever nobody asks for anything. */
const FRONTEND_GAUGES = [
	"dynamo_frontend_inflight_requests",
	"dynamo_frontend_active_requests",
	"dynamo_frontend_queued_requests",
	"dynamo_frontend_stage_requests",
] as const;

/** Reads a metrics page. */
export async function scrape(url: string): Promise<PromPage> {
	return parsePrometheus((await http(`${url}/metrics`)).body);
}

/** Resolves once every gauge of requests under way is back at 0. @throws Error naming the first that is not. */
export async function untilFrontendIdle(frontend: HttpChild): Promise<void> {
	for (const name of FRONTEND_GAUGES) {
		await until(`${name} is 0`, async () => (await scrape(frontend.url)).sum(name) === 0, { child: frontend.child });
	}
}

/** Resolves once the worker has nothing under way. */
export async function untilWorkerIdle(worker: WorkerChild): Promise<void> {
	await until("the worker is idle", async () => (await inflightOf(worker)) === 0, { child: worker.child });
}

/** Requests that the worker's endpoints are handling. */
export async function inflightOf(worker: WorkerChild): Promise<number> {
	return (await scrape(worker.system)).sum("dynamo_component_inflight_requests");
}

/** Requests for which the worker has opened the connection of the answer: from then on its loss shows at once. */
export async function calledBack({ child, system }: WorkerChild): Promise<number> {
	return child.ended ? 0 : (await scrape(system)).sum("dynamo_work_handler_time_to_first_response_seconds_count");
}

/** A request plane that processes can meet on, and why it cannot be tried here; empty: it can. */
export interface Plane {
	readonly name: "tcp" | "nats";
	readonly missing: string;
}

const nats = findNatsServer();

/** The request planes between processes. */
export const PLANES: readonly Plane[] = [
	{ name: "tcp", missing: "" },
	{ name: "nats", missing: nats.missing },
];

/** Our own processes around one discovery folder of their own. */
export class Fleet {
	readonly folder = mkdtempSync(join(tmpdir(), "dynamo-fleet-"));
	readonly env: Record<string, string>;
	readonly children: Child[] = [];
	#server: NatsServer | undefined;

	constructor(env: Record<string, string> = {}) {
		this.env = { ...fileDiscoveryEnv(this.folder), ...env };
	}

	/** A fleet whose requests go over a plane; a NATS server of its own is started for it where that is needed. */
	static async over(plane: Plane, env: Record<string, string> = {}): Promise<Fleet> {
		if (plane.name === "tcp") return new Fleet(env);
		const server = await NatsServer.start();
		const fleet = new Fleet({ ...env, [ENV.DYN_REQUEST_PLANE]: "nats", [ENV.NATS_SERVER]: server.url });
		fleet.#server = server;
		return fleet;
	}

	/** Starts `dynamo ...` within the fleet's settings. */
	start(args: readonly string[], env: Record<string, string> = {}): Child {
		const child = startDynamo(args, { env: { ...this.env, ...env } });
		this.children.push(child);
		return child;
	}

	/** Starts a simulated worker for `model` and waits until it is registered. */
	async mocker(
		modelPath: string,
		model: string,
		args: readonly string[] = [],
		env: Record<string, string> = {},
	): Promise<WorkerChild> {
		const port = await freePort();
		const child = this.start(["mocker", "--model-path", modelPath, "--model-name", model, ...args], {
			DYN_SYSTEM_PORT: String(port),
			...env,
		});
		await child.waitForOutput(/simulated workers? serves? /);
		return { child, system: `http://127.0.0.1:${port}` };
	}

	/** Starts a worker with a real engine and waits until it is registered. */
	async worker(model: string, name: string, args: readonly string[] = []): Promise<WorkerChild> {
		const port = await freePort();
		const child = this.start(["worker", "--model", model, "--model-name", name, ...args], {
			DYN_SYSTEM_PORT: String(port),
		});
		await child.waitForOutput(/the worker serves /, 120_000);
		return { child, system: `http://127.0.0.1:${port}` };
	}

	/** Starts a worker of `examples/` and waits until it is registered. */
	async example(name: string, args: readonly string[] = [], env: Record<string, string> = {}): Promise<WorkerChild> {
		const port = await freePort();
		const child = startExample(name, args, { env: { ...this.env, DYN_SYSTEM_PORT: String(port), ...env } });
		this.children.push(child);
		await child.waitForOutput(/^serving /m);
		return { child, system: `http://127.0.0.1:${port}` };
	}

	/** Starts a frontend and waits until it lists the model, or all of the models. */
	async frontend(
		models: string | readonly string[],
		args: readonly string[] = [],
		env: Record<string, string> = {},
	): Promise<HttpChild> {
		const frontend = await startOwnHttp("frontend", args, { ...this.env, ...env }, ...[models].flat());
		this.children.push(frontend.child);
		return frontend;
	}

	/** Ends every process that still runs and removes the folder. */
	async stop(): Promise<void> {
		for (const child of this.children) child.kill("SIGCONT");
		await Promise.all(this.children.map((child) => child.stop(5000)));
		await this.#server?.stop();
		rmSync(this.folder, { recursive: true, force: true });
	}
}
