// SPDX-License-Identifier: Apache-2.0
// Starts a real nats-server for tests, on a free port with a folder of its own.
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Child } from "./child-process.js";
import type { Found } from "./found.js";
import { freePort } from "./free-port.js";

let found: string | undefined;

/** The nats-server program, or why there is none. */
export function findNatsServer(): Found {
	found ??= ["nats-server", "/usr/sbin/nats-server"].find((name) => spawnSync(name, ["--version"]).status === 0) ?? "";
	const missing = "no nats-server on the PATH (Debian: apt-get install nats-server)";
	return { path: found, missing: found === "" ? missing : "" };
}

export interface NatsServerOptions {
	/** Text of a configuration file (`max_payload: 65536`, `authorization {…}`, `tls {…}`). */
	readonly config?: string;
	/** Default: a free one. */
	readonly port?: number;
	/** With JetStream. Default true. */
	readonly jetStream?: boolean;
}

/** A nats-server that can be killed and started again on the same port and folder. */
export class NatsServer {
	readonly port: number;
	readonly folder: string;
	readonly #args: readonly string[];
	#child: Child | undefined;

	private constructor(port: number, folder: string, args: readonly string[]) {
		this.port = port;
		this.folder = folder;
		this.#args = args;
	}

	/** @throws Error when there is no nats-server, or it does not start. */
	static async start(options: NatsServerOptions = {}): Promise<NatsServer> {
		const port = options.port ?? (await freePort());
		const folder = mkdtempSync(join(tmpdir(), "dynamo-nats-"));
		const args = ["-a", "127.0.0.1", "-p", String(port)];
		if (options.jetStream !== false) args.push("-js", "-sd", folder);
		if (options.config !== undefined) {
			const file = join(folder, "nats.conf");
			writeFileSync(file, options.config);
			args.push("-c", file);
		}
		const server = new NatsServer(port, folder, args);
		await server.restart();
		return server;
	}

	/** `nats://127.0.0.1:port`. */
	get url(): string {
		return `nats://127.0.0.1:${this.port}`;
	}

	get child(): Child {
		if (this.#child === undefined) throw new Error("nats-server does not run");
		return this.#child;
	}

	/** Starts it; ready when the promise resolves. */
	async restart(): Promise<void> {
		const program = findNatsServer();
		if (program.missing) throw new Error(program.missing);
		this.#child = new Child(program.path, this.#args);
		await this.#child.waitForOutput(/Server is ready/);
	}

	/** Ends it at once, and resolves when it is gone. */
	async kill(): Promise<void> {
		this.#child?.kill("SIGKILL");
		await this.#child?.exited;
	}

	/** Ends it and removes its folder. */
	async stop(): Promise<void> {
		await this.kill();
		rmSync(this.folder, { recursive: true, force: true });
	}
}
