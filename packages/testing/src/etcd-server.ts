// SPDX-License-Identifier: Apache-2.0
// Starts a real etcd for tests, on free ports with a data folder of its own.
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Child } from "./child-process.js";
import type { Found } from "./found.js";
import { freePort } from "./free-port.js";

let found: string | undefined;

/** The etcd program, or why there is none. */
export function findEtcd(): Found {
	const answers = (program: string, argument: string) => spawnSync(program, [argument]).status === 0;
	found ??= answers("etcd", "--version") && answers("etcdctl", "version") ? "etcd" : "";
	const missing = "no etcd and etcdctl on the PATH (Debian: apt-get install etcd-server etcd-client)";
	return { path: found, missing: found === "" ? missing : "" };
}

export interface EtcdServerOptions {
	/** Added to the command line. */
	readonly args?: readonly string[];
	/** Clients must come over TLS; the certificates are in `args`, and in `ctl` those for etcdctl. */
	readonly tls?: boolean;
	readonly ctl?: readonly string[];
}

/** An etcd that can be killed and started again on the same port, with its data or without. */
export class EtcdServer {
	readonly port: number;
	readonly folder: string;
	readonly #peerPort: number;
	readonly #options: EtcdServerOptions;
	#child: Child | undefined;
	#listensAt: number | undefined;
	#cluster: readonly EtcdServer[] = [this];

	private constructor(port: number, peerPort: number, options: EtcdServerOptions) {
		this.port = port;
		this.folder = mkdtempSync(join(tmpdir(), "dynamo-etcd-"));
		this.#peerPort = peerPort;
		this.#options = options;
	}

	/** @throws Error when there is no etcd, or it does not start. */
	static async start(options: EtcdServerOptions = {}): Promise<EtcdServer> {
		const server = new EtcdServer(await freePort(), await freePort(), options);
		await server.restart();
		return server;
	}

	/** Several members of one cluster. */
	static async startCluster(size: number): Promise<EtcdServer[]> {
		const members: EtcdServer[] = [];
		while (members.length < size) members.push(new EtcdServer(await freePort(), await freePort(), {}));
		for (const member of members) member.#cluster = members;
		await Promise.all(members.map((member) => member.restart()));
		return members;
	}

	/** `http://127.0.0.1:port`, https with TLS. */
	get url(): string {
		return `${this.#options.tls === true ? "https" : "http"}://127.0.0.1:${this.#listensAt ?? this.port}`;
	}

	get #name(): string {
		return `member-${this.port}`;
	}

	get #peer(): string {
		return `http://127.0.0.1:${this.#peerPort}`;
	}

	/** The running process. */
	get child(): Child {
		if (this.#child === undefined) throw new Error("etcd does not run");
		return this.#child;
	}

	/**
	 * Starts it; ready when the promise resolves. `empty`: without the data of its former life; `port`: for this life
	 * where its clients do not look for it.
	 */
	async restart(options: { empty?: boolean; port?: number } = {}): Promise<void> {
		this.#listensAt = options.port;
		const etcd = findEtcd();
		if (etcd.missing) throw new Error(etcd.missing);
		const data = join(this.folder, "data");
		if (options.empty === true) rmSync(data, { recursive: true, force: true });
		const cluster = this.#cluster.map((member) => `${member.#name}=${member.#peer}`).join(",");
		const args = ["--name", this.#name, "--data-dir", data, "--initial-cluster", cluster];
		args.push("--listen-client-urls", this.url, "--advertise-client-urls", this.url);
		args.push("--listen-peer-urls", this.#peer, "--initial-advertise-peer-urls", this.#peer);
		this.#child = new Child(etcd.path, [...args, ...(this.#options.args ?? [])]);
		await this.#child.waitForOutput(/serving (?:insecure )?client (?:requests|traffic)/);
	}

	/** Runs etcdctl on it. @throws Error with what it said. */
	etcdctl(...args: string[]): string {
		const env = { ...process.env, ETCDCTL_API: "3" };
		const done = spawnSync("etcdctl", [`--endpoints=${this.url}`, ...(this.#options.ctl ?? []), ...args], {
			encoding: "utf8",
			env,
			timeout: 10_000,
		});
		if (done.status !== 0) throw new Error(`etcdctl ${args.join(" ")}: ${done.error?.message ?? done.stderr}`);
		return done.stdout;
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
