// SPDX-License-Identifier: Apache-2.0
// The etcd backend against real etcd processes that go, come back empty, lose leases and ask for logins.
import { subscribe, unsubscribe } from "node:diagnostics_channel";
import type { EndpointRecord } from "@dynamo-ts/protocols/internal";
import { recordKey } from "@dynamo-ts/protocols/internal";
import { CertificateAuthority, EtcdServer, findEtcd, findOpenssl, freePort, titled } from "@dynamo-ts/testing/internal";
import { afterEach, beforeAll, describe, expect, it, vi } from "vitest";
import { EnvReader } from "../../config.js";
import { createLogger } from "../../observability/logging.js";
import type { Discovery, DiscoveryEvent } from "../discovery.js";
import { EtcdDiscovery } from "./etcd.js";
import { EtcdClient, type EtcdWatchStream } from "./etcd-client.js";
import { readEtcdConfig } from "./etcd-config.js";

const TTL_SECONDS = 2;
const etcd = findEtcd();
const missing = etcd.missing;
const lines: string[] = [];
const log = createLogger({ filter: "info", format: "readable", ansi: false, localTime: false }, "test", (line) => {
	lines.push(line);
});
const opened: EtcdDiscovery[] = [];

async function open(url: string, env: Record<string, string> = {}, keepMissingMs?: number): Promise<EtcdDiscovery> {
	const settings = { ETCD_ENDPOINTS: url, ETCD_LEASE_TTL: String(TTL_SECONDS), ...env };
	const config = readEtcdConfig(new EnvReader(settings));
	const discovery = await EtcdDiscovery.open({
		config,
		log,
		...(keepMissingMs === undefined ? {} : { keepMissingMs }),
	});
	opened.push(discovery);
	return discovery;
}

function endpoint(discovery: Discovery, name = "generate"): EndpointRecord {
	return {
		type: "Endpoint",
		namespace: "dynamo",
		component: "backend",
		endpoint: name,
		instance_id: discovery.instanceId,
		transport: { tcp: `127.0.0.1:4711/${name}` },
		request_plane_codec: "msgpack",
	};
}

async function follow(discovery: Discovery): Promise<DiscoveryEvent[]> {
	const events: DiscoveryEvent[] = [];
	await discovery.watch("v1/instances", (event) => events.push(event));
	return events;
}

const PATIENCE = { timeout: 20_000, interval: 20 };
const keysIn = (server: EtcdServer): string[] =>
	server.etcdctl("get", "--prefix", "v1/", "--keys-only").split("\n").filter(Boolean);
const types = (events: readonly DiscoveryEvent[]) => events.map((event) => event.type);

describe.skipIf(missing)(titled("etcd discovery", missing), () => {
	let server: EtcdServer;

	beforeAll(async () => {
		server = await EtcdServer.start();
		return () => server.stop();
	});
	afterEach(async () => {
		await Promise.all(opened.splice(0).map((discovery) => discovery.close()));
		lines.length = 0;
	});

	it("writes Dynamo's keys on one lease, whose id is the instance id, and takes them away when it leaves", async () => {
		const one = await open(server.url);
		const record = endpoint(one);
		await one.put(record);
		const hex = one.instanceId.toString(16);
		expect(keysIn(server)).toEqual([`v1/instances/dynamo/backend/generate/${hex}`]);
		expect(server.etcdctl("lease", "timetolive", hex, "--keys")).toMatch(
			new RegExp(`lease ${hex} granted with TTL\\(2s\\).*v1/instances/dynamo/backend/generate/${hex}`),
		);
		expect(JSON.parse(server.etcdctl("get", recordKey(record), "--print-value-only"))).toMatchObject({
			type: "Endpoint",
			transport: { tcp: "127.0.0.1:4711/generate" },
		});
		await one.close();
		expect(keysIn(server)).toEqual([]);
		expect(server.etcdctl("lease", "list")).not.toContain(hex);
	});

	it("outlives its time to live many times over as long as it runs", async () => {
		const one = await open(server.url);
		const events = await follow(await open(server.url));
		await one.put(endpoint(one));
		await new Promise((resolve) => setTimeout(resolve, TTL_SECONDS * 2000));
		expect(types(events)).toEqual(["put"]);
	});

	it("keeping a lease alive and ending a watch costs no new connections", async () => {
		const client = await EtcdClient.create(readEtcdConfig(new EnvReader({ ETCD_ENDPOINTS: server.url })));
		let dialled = 0;
		const count = (): void => void dialled++;
		subscribe("net.client.socket", count);
		try {
			const lease = await client.grantLease(60);
			const round = async (): Promise<void> => {
				expect(await client.renewLease(lease, 20_000)).toBe(60);
				const { revision } = await client.range("v1/");
				const stream = await new Promise<EtcdWatchStream>((resolve, reject) => {
					const opened = client.watch("v1/", revision + 1n, {
						onCreated: () => void opened.then(resolve),
						onPut: () => {},
						onDelete: () => {},
						onEnd: (why) => reject(new Error(why)),
					});
					opened.catch(reject);
				});
				stream.cancel();
			};
			await round();
			const before = dialled;
			expect(before).toBeGreaterThan(0);
			for (let i = 0; i < 3; i++) await round();
			expect(dialled).toBe(before);
			await client.revokeLease(lease);
		} finally {
			unsubscribe("net.client.socket", count);
			client.close();
		}
	});

	it("a lease revoked by hand: the keys come back on a lease of the same id", async () => {
		const [one, two] = [await open(server.url), await open(server.url)];
		const events = await follow(two);
		await one.put(endpoint(one));
		await vi.waitFor(() => expect(types(events)).toEqual(["put"]), PATIENCE);
		server.etcdctl("lease", "revoke", one.instanceId.toString(16));
		await vi.waitFor(() => expect(types(events)).toEqual(["put", "delete", "put"]), PATIENCE);
		expect(events[2]).toEqual(events[0]);
		expect(lines.filter((line) => line.includes("the etcd lease was lost"))).toHaveLength(1);
		// And it lives on.
		await one.put(endpoint(one, "more"));
		await vi.waitFor(() => expect(types(events)).toEqual(["put", "delete", "put", "put"]), PATIENCE);
	});

	it("keys deleted by hand come back, keys that should be gone go", async () => {
		const one = await open(server.url);
		await one.put(endpoint(one));
		server.etcdctl("del", "--prefix", "v1/");
		server.etcdctl("put", "v1/instances/a/b/c/1", "{}", `--lease=${one.instanceId.toString(16)}`);
		await vi.waitFor(() => expect(keysIn(server)).toEqual([recordKey(endpoint(one))]), PATIENCE);
	});

	it("away for three times the time to live: nothing is forgotten, nothing is told, and the log stays short", async () => {
		const [one, two] = [await open(server.url), await open(server.url)];
		const events = await follow(two);
		await one.put(endpoint(one));
		await vi.waitFor(() => expect(events).toHaveLength(1), PATIENCE);
		await server.kill();
		await new Promise((resolve) => setTimeout(resolve, TTL_SECONDS * 3000));
		expect(await two.list("v1/instances")).toEqual([events[0]?.type === "put" ? events[0].record : undefined]);
		await server.restart();
		await one.put(endpoint(one, "after"));
		await vi.waitFor(() => expect(events).toHaveLength(2), PATIENCE);
		expect(types(events)).toEqual(["put", "put"]);
		expect(lines.filter((line) => line.includes("cannot be used")).length).toBeLessThan(8);
	});

	it("back with an empty store: all is written again, nobody sees anything go, and what is new is seen", async () => {
		const [one, two, dead] = [await open(server.url), await open(server.url, {}, 3000), await open(server.url)];
		const events = await follow(two);
		await one.put(endpoint(one));
		await two.put(endpoint(two));
		await dead.put(endpoint(dead));
		await vi.waitFor(() => expect(events).toHaveLength(3), PATIENCE);
		// A store with a long past: the new one takes long to reach its revision.
		for (let i = 0; i < 20; i++) server.etcdctl("put", "other", String(i));
		await server.kill();
		await dead.close();
		await server.restart({ empty: true });
		const started = performance.now();
		const wanted = [recordKey(endpoint(one)), recordKey(endpoint(two))].sort();
		await vi.waitFor(() => expect(keysIn(server).sort()).toEqual(wanted), PATIENCE);
		console.info(`an emptied etcd held all records again after ${Math.round(performance.now() - started)} ms`);
		expect(types(events)).toEqual(["put", "put", "put"]);
		await one.put(endpoint(one, "new"));
		await vi.waitFor(() => expect(events).toHaveLength(4), PATIENCE);
		// The one that did not come back goes in the end.
		await vi.waitFor(() => expect(events.at(-1)?.type).toBe("delete"), PATIENCE);
		expect(events.at(-1)?.key).toBe(recordKey(endpoint(dead)));
		expect(types(events)).toEqual(["put", "put", "put", "put", "delete"]);
	});

	it("an emptied store that has overtaken the old one's revision is noticed too", async () => {
		const [one, two] = [await open(server.url), await open(server.url)];
		const events = await follow(two);
		await one.put(endpoint(one));
		await vi.waitFor(() => expect(events).toHaveLength(1), PATIENCE);
		await server.kill();
		// Nobody of ours comes back before others have written a lot.
		await server.restart({ empty: true, port: await freePort() });
		for (let i = 0; i < 100; i++) server.etcdctl("put", `other/${i}`, "x");
		await server.kill();
		await server.restart();
		await vi.waitFor(() => expect(keysIn(server)).toContain(recordKey(endpoint(one))), PATIENCE);
		await one.put(endpoint(one, "new"));
		await vi.waitFor(() => expect(events).toHaveLength(2), PATIENCE);
		expect(types(events)).toEqual(["put", "put"]);
	});

	it("silent instead of gone: leaving does not wait for it", async () => {
		const one = await open(server.url);
		await one.put(endpoint(one));
		server.child.kill("SIGSTOP");
		try {
			await one.close();
		} finally {
			server.child.kill("SIGCONT");
		}
		await vi.waitFor(() => expect(keysIn(server)).toEqual([]), PATIENCE);
	});

	it("a record that etcd does not take is refused at once, with its words", async () => {
		const one = await open(server.url);
		const record = endpoint(one, "x".repeat(2_000_000));
		await expect(one.put(record)).rejects.toThrow(
			/cannot be written to http.*(?:request is too large|larger than max)/s,
		);
		await one.put(endpoint(one));
		expect(keysIn(server)).toEqual([recordKey(endpoint(one))]);
	});

	it("after close it answers with an error", async () => {
		const one = await open(server.url);
		await one.close();
		await expect(one.put(endpoint(one))).rejects.toThrow("discovery is closed");
		await expect(one.watch("v1/instances", () => {})).rejects.toThrow("discovery is closed");
	});

	it("etcd that is not there: one line at once, an error with both cures in the end", async () => {
		const url = `http://127.0.0.1:${await freePort()}`;
		const env = { ETCD_STARTUP_CONNECT_TIMEOUT_SECONDS: "1" };
		await expect(open(url, env)).rejects.toThrow(
			/cannot be reached: start it .*DYN_DISCOVERY_BACKEND=file.*ECONNREFUSED/s,
		);
		expect(lines).toHaveLength(1);
		expect(lines[0]).toMatch(/cannot be reached: start it .*DYN_DISCOVERY_BACKEND=file.*tried for 1 s/);
	});

	it("etcd that comes a little later is waited for", async () => {
		await server.kill();
		const opening = open(server.url);
		await vi.waitFor(() => expect(lines).toHaveLength(1), PATIENCE);
		await server.restart();
		await (await opening).put(endpoint(await opening));
		expect(keysIn(server)).toHaveLength(1);
	});
});

describe.skipIf(missing)(titled("etcd discovery over several members", missing), () => {
	let members: EtcdServer[];

	beforeAll(async () => {
		members = await EtcdServer.startCluster(3);
		return () => Promise.all(members.map((member) => member.stop()));
	});
	afterEach(async () => {
		await Promise.all(opened.splice(0).map((discovery) => discovery.close()));
		lines.length = 0;
	});

	it("goes on over the others when one member dies or falls silent", async () => {
		const url = members.map((member) => member.url).join(",");
		const pings = { ETCD_KEEPALIVE_INTERVAL_SECONDS: "5", ETCD_KEEPALIVE_TIMEOUT_SECONDS: "1" };
		// A time to live that a change of leader fits into.
		const env = { ...pings, ETCD_LEASE_TTL: "10" };
		const [one, two] = [await open(url, env), await open(url, env)];
		const events = await follow(two);
		await one.put(endpoint(one, "0"));
		for (const [index, member] of members.entries()) {
			if (index === 0) await member.kill();
			else member.child.kill("SIGSTOP");
			await one.put(endpoint(one, `during-${index}`));
			await vi.waitFor(() => expect(types(events)).toHaveLength(2 + index), PATIENCE);
			if (index === 0) await member.restart();
			else member.child.kill("SIGCONT");
		}
		expect(types(events)).toEqual(["put", "put", "put", "put"]);
	}, 60_000);
});

const openssl = findOpenssl();
const secure = missing || openssl.missing;
describe.skipIf(secure)(titled("etcd discovery with TLS and login", secure), () => {
	let authority: CertificateAuthority;
	let server: EtcdServer;
	let env: Record<string, string>;

	beforeAll(async () => {
		authority = new CertificateAuthority();
		const [own, client] = [authority.sign(), authority.sign()];
		const args = [
			"--cert-file",
			own.cert,
			"--key-file",
			own.key,
			"--trusted-ca-file",
			authority.ca,
			"--client-cert-auth",
		];
		const ctl = ["--cacert", authority.ca, "--cert", client.cert, "--key", client.key];
		server = await EtcdServer.start({ tls: true, args, ctl });
		env = { ETCD_AUTH_CA: authority.ca, ETCD_AUTH_CLIENT_CERT: client.cert, ETCD_AUTH_CLIENT_KEY: client.key };
		return async () => {
			await server.stop();
			authority.remove();
		};
	});
	afterEach(async () => {
		await Promise.all(opened.splice(0).map((discovery) => discovery.close()));
		lines.length = 0;
	});

	const short = { ETCD_STARTUP_CONNECT_TIMEOUT_SECONDS: "1" };

	it("with the certificates it works, without it does not", async () => {
		const one = await open(server.url, env);
		await one.put(endpoint(one));
		expect(keysIn(server)).toEqual([recordKey(endpoint(one))]);
		await expect(open(server.url, { ...short, ETCD_AUTH_CA: env.ETCD_AUTH_CA as string })).rejects.toThrow(
			/cannot be reached/,
		);
		await expect(open(server.url, short)).rejects.toThrow(/cannot be reached/);
		await expect(open(server.url, { ...env, ETCD_AUTH_CA: "/nowhere" })).rejects.toThrow(
			/ETCD_AUTH_CA=\/nowhere cannot be read/,
		);
	});

	it("with the login it works, also after etcd forgot it; a wrong one is told at once", async () => {
		// Certificates name a user as well; a login wins.
		server.etcdctl("user", "add", "root:secret");
		server.etcdctl("user", "grant-role", "root", "root");
		server.etcdctl("auth", "enable");
		const login = { ...env, ETCD_AUTH_USERNAME: "root", ETCD_AUTH_PASSWORD: "secret" };
		try {
			await expect(open(server.url, { ...login, ETCD_AUTH_PASSWORD: "wrong" })).rejects.toThrow(
				/refuses this process \(see ETCD_AUTH_USERNAME/,
			);
			const [one, two] = [await open(server.url, login), await open(server.url, login)];
			const events = await follow(two);
			await one.put(endpoint(one));
			await vi.waitFor(() => expect(events).toHaveLength(1), PATIENCE);
			await server.kill();
			await server.restart();
			await one.put(endpoint(one, "after"));
			await vi.waitFor(() => expect(types(events)).toEqual(["put", "put"]), PATIENCE);
			await new Promise((resolve) => setTimeout(resolve, TTL_SECONDS * 2000));
			expect(types(events)).toEqual(["put", "put"]);
		} finally {
			server.etcdctl("--user", "root:secret", "auth", "disable");
		}
	});
});
