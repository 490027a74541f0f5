// SPDX-License-Identifier: Apache-2.0
// Real and our own processes around one discovery backend and one request plane.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
	type Child,
	EtcdServer,
	fileDiscoveryEnv,
	freePort,
	type HttpChild,
	http,
	listsModel,
	NatsServer,
	scrape,
	startDynamo,
	startOwnHttp,
	startRealFrontend,
	startRealMocker,
	until,
	type WorkerChild,
} from "@dynamo-ts/testing/internal";

export type Kind = "real" | "our";
export type Plane = "tcp" | "nats";
export type Backend = "file" | "etcd";

/** Models, one per kind of worker, so that a test knows which kind it asks. */
export const MODEL_OF: Record<Kind, string> = { real: "served-by-real", our: "served-by-ours" };

/** Everything that one combination of planes needs; nothing is started until asked for. */
export class Cluster {
	readonly #python: string;
	readonly #modelPath: string;
	readonly #folder = mkdtempSync(join(tmpdir(), "dynamo-matrix-"));
	readonly #children: Child[] = [];
	readonly env: Record<string, string>;
	/** Of real frontends alone. */
	readonly #frontendEnv: Record<string, string>;
	readonly #servers: { stop(): Promise<void> }[];

	private constructor(
		python: string,
		modelPath: string,
		env: Record<string, string>,
		servers: { stop(): Promise<void> }[],
	) {
		this.#python = python;
		this.#modelPath = modelPath;
		this.env = { ...fileDiscoveryEnv(this.#folder), ...env };
		// Over NATS the real one hangs before many components, whosever they are, with as few threads as there are cores.
		this.#frontendEnv = env.DYN_REQUEST_PLANE === "nats" ? { DYN_RUNTIME_NUM_WORKER_THREADS: "8" } : {};
		this.#servers = servers;
	}

	/** @param options.env further variables of every process; `options.natsConfig` of the NATS server. */
	static async start(
		python: string,
		modelPath: string,
		plane: Plane,
		backend: Backend,
		options: { env?: Record<string, string>; natsConfig?: string } = {},
	): Promise<Cluster> {
		const servers: { stop(): Promise<void> }[] = [];
		const env: Record<string, string> = { DYN_REQUEST_PLANE: plane, DYN_DISCOVERY_BACKEND: backend, ...options.env };
		if (plane === "nats") {
			const nats = await NatsServer.start(options.natsConfig === undefined ? {} : { config: options.natsConfig });
			servers.push(nats);
			// The real Dynamo wants to be told by the scheme.
			env.NATS_SERVER = options.natsConfig?.includes("tls") ? nats.url.replace("nats:", "tls:") : nats.url;
		}
		if (backend === "etcd") {
			const etcd = await EtcdServer.start();
			servers.push(etcd);
			env.ETCD_ENDPOINTS = etcd.url;
		}
		return new Cluster(python, modelPath, env, servers);
	}

	/** Starts a mocker for its kind's model, and waits until its metrics can be read. */
	mocker(kind: Kind): Promise<WorkerChild> {
		// A step every few milliseconds: long streams are long enough to be interrupted.
		const args = ["--speedup-ratio", "4", "--endpoint", `dyn://dynamo.${kind}.generate`];
		return this.startMocker(kind, MODEL_OF[kind], args);
	}

	/** The same, for any model. */
	async startMocker(kind: Kind, model: string, args: string[]): Promise<WorkerChild> {
		const port = await freePort();
		const env = { ...this.env, DYN_SYSTEM_PORT: String(port) };
		const child =
			kind === "real"
				? startRealMocker(this.#python, env, this.#modelPath, model, args)
				: startDynamo(["mocker", "--model-path", this.#modelPath, "--model-name", model, ...args], { env });
		this.#children.push(child);
		const system = `http://127.0.0.1:${port}`;
		const answers = async () => (await http(`${system}/metrics`).catch(() => undefined))?.status === 200;
		await until(`the ${kind} mocker's system server answers`, answers, { timeoutMs: 90_000, child });
		return { child, system };
	}

	/** Starts one of our mockers for the model "strange", with other variables than the rest; nothing is waited for. */
	strangeMocker(more: Record<string, string>): Child {
		const args = ["mocker", "--model-path", this.#modelPath, "--model-name", "strange"];
		const child = startDynamo([...args, "--endpoint", "dyn://dynamo.strange.generate"], {
			env: { ...this.env, ...more },
		});
		this.#children.push(child);
		return child;
	}

	/** Starts a frontend that moves streams off lost workers, and waits until it lists the models of these kinds. */
	async frontend(kind: Kind, kinds: readonly Kind[] = ["our", "real"]): Promise<HttpChild> {
		const frontend = await this.startFrontend(kind, MODEL_OF.our, ["--migration-limit", "3"]);
		const { child, url } = frontend;
		for (const model of kinds.map((one) => MODEL_OF[one])) {
			await until(`${url} lists ${model}`, () => listsModel(url, model), { timeoutMs: 60_000, child });
		}
		return frontend;
	}

	/** Starts a frontend and waits until it lists the model. */
	async startFrontend(kind: Kind, model: string, args: string[]): Promise<HttpChild> {
		const frontend =
			kind === "real"
				? await startRealFrontend(this.#python, { ...this.env, ...this.#frontendEnv }, model, args)
				: await startOwnHttp("frontend", args, this.env, model);
		this.#children.push(frontend.child);
		return frontend;
	}

	async stop(): Promise<void> {
		await Promise.all(this.#children.map((child) => child.stop(5000)));
		for (const server of this.#servers) await server.stop();
		rmSync(this.#folder, { recursive: true, force: true });
	}
}

/** Events of workers' caches that a frontend, ours or a real one, has taken in. */
export async function eventsHeard(url: string): Promise<number> {
	return (await scrape(url)).sum("dynamo_component_kv_cache_events_applied", { status: "ok" });
}
