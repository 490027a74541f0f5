// SPDX-License-Identifier: Apache-2.0
// Starts a real etcd for tests, on free ports with a data folder of its own.
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Child } from "./child-process.js";
import { freePort } from "./free-port.js";

let found: string | undefined;

/** The etcd program, or why there is none. */
export function findEtcd(): { program: string } | { missing: string } {
	found ??= ["etcd", "/usr/sbin/etcd"].find((name) => spawnSync(name, ["--version"]).status === 0) ?? "";
	return found === "" ? { missing: "no etcd on the PATH (Debian: apt-get install etcd-server)" } : { program: found };
}

export interface EtcdServerOptions {
	/** Added to the command line. */
	readonly args?: readonly string[];
	/** Clients must come over TLS; the certificates are in `args`. */
	readonly tls?: boolean;
}

/** An etcd that can be killed and started again on the same port, with its data or without. */
export class EtcdServer {
	readonly port: number;
	readonly folder: string;
	readonly #peerPort: number;
	readonly #options: EtcdServerOptions;
	#child: Child | undefined;

	private constructor(port: number, peerPort: number, folder: string, options: EtcdServerOptions) {
		this.port = port;
		this.folder = folder;
		this.#peerPort = peerPort;
		this.#options = options;
	}

	/** @throws Error when there is no etcd, or it does not start. */
	static async start(options: EtcdServerOptions = {}): Promise<EtcdServer> {
		const folder = mkdtempSync(join(tmpdir(), "dynamo-etcd-"));
		const server = new EtcdServer(await freePort(), await freePort(), folder, options);
		await server.restart();
		return server;
	}

	/** `http://127.0.0.1:port`, https with TLS. */
	get url(): string {
		return `${this.#options.tls === true ? "https" : "http"}://127.0.0.1:${this.port}`;
	}

	/** The running process. */
	get child(): Child {
		if (this.#child === undefined) throw new Error("etcd does not run");
		return this.#child;
	}

	/** Starts it; ready when the promise resolves. `empty`: without the data of its former life. */
	async restart(options: { empty?: boolean } = {}): Promise<void> {
		const etcd = findEtcd();
		if ("missing" in etcd) throw new Error(etcd.missing);
		const data = join(this.folder, "data");
		if (options.empty === true) rmSync(data, { recursive: true, force: true });
		const peer = `http://127.0.0.1:${this.#peerPort}`;
		const args = ["--name", "test", "--data-dir", data, "--initial-cluster", `test=${peer}`];
		args.push("--listen-client-urls", this.url, "--advertise-client-urls", this.url);
		args.push("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer);
		this.#child = new Child(etcd.program, [...args, ...(this.#options.args ?? [])]);
		await this.#child.waitForOutput(/serving (?:insecure )?client (?:requests|traffic)/);
	}

	/** Ends it at once, and resolves when it is gone. */
	async kill(): Promise<void> {
		this.#child?.kill("SIGKILL");
		await this.#child?.exited;
	}

	/** Ends it and removes its folder. */
	async stop(): Promise<void> {
		this.#child?.kill("SIGCONT");
		await this.kill();
		rmSync(this.folder, { recursive: true, force: true });
	}
}
