// SPDX-License-Identifier: Apache-2.0
import {
	findNatsServer,
	freePort,
	NatsServer,
	type NatsServerOptions,
	titled,
	until,
} from "@dynamo-ts/testing/internal";
import { nkeys } from "nats";
import { afterEach, describe, expect, it } from "vitest";
import { runtimeConfigFromEnv } from "../config.js";
import { createLogger } from "../observability/logging.js";
import { NatsConnection } from "./nats-connection.js";
import type { NatsSettings } from "./nats-settings.js";

const program = findNatsServer();
const missing = program.missing;

const lines: string[] = [];
const log = createLogger({ filter: "info", format: "readable", ansi: false, localTime: false }, "test", (line) => {
	lines.push(line);
});

function settings(env: Record<string, string>): NatsSettings {
	return runtimeConfigFromEnv({ NATS_STARTUP_CONNECT_TIMEOUT_SECONDS: "10", ...env }).nats;
}

describe("settings", () => {
	const open = (env: Record<string, string>) => NatsConnection.open(settings(env), log);

	it.each([
		[{ NATS_SERVER: "http://x:1" }, /NATS_SERVER: "http:\/\/x:1" is not nats:\/\/host:port/],
		[{ NATS_SERVER: "," }, /NATS_SERVER names no server/],
		[{ NATS_AUTH_USERNAME: "u" }, /NATS_AUTH_USERNAME and NATS_AUTH_PASSWORD must both be set/],
		[{ NATS_TLS_CLIENT_CERT_PATH: "/x" }, /NATS_TLS_CLIENT_CERT_PATH and NATS_TLS_CLIENT_KEY_PATH must both be set/],
		[{ NATS_TLS_CA_CERT_PATH: "/no/such/file" }, /NATS_TLS_CA_CERT_PATH: ENOENT/],
		[{ NATS_AUTH_CREDENTIALS_FILE: "/no/such/file" }, /NATS_AUTH_CREDENTIALS_FILE: ENOENT/],
	])("%j is refused with the variable's name", async (env, message) => {
		await expect(open({ NATS_STARTUP_CONNECT_TIMEOUT_SECONDS: "0", ...env })).rejects.toThrow(message);
	});

	it("a server that is not there is told with address and remedy, and without the password", async () => {
		const port = await freePort();
		const error = await open({
			NATS_SERVER: `nats://me:secret@127.0.0.1:${port}`,
			NATS_STARTUP_CONNECT_TIMEOUT_SECONDS: "0.3",
		}).catch((failure) => failure);
		expect(error.errorClass).toBe("Unavailable");
		expect(error.message).toMatch(new RegExp(`no connection to NATS at nats://127.0.0.1:${port} within 300 ms`));
		expect(error.message).toContain("NATS_SERVER");
		expect(error.message).not.toContain("secret");
	});
});

describe.skipIf(missing)(titled("a real nats-server", missing), () => {
	const ends: (() => Promise<unknown>)[] = [];
	afterEach(async () => {
		for (const end of ends.splice(0).reverse()) await end();
	});
	const start = async (options: NatsServerOptions = {}): Promise<NatsServer> => {
		const server = await NatsServer.start({ jetStream: false, ...options });
		ends.push(() => server.stop());
		return server;
	};
	const connect = async (env: Record<string, string>): Promise<NatsConnection> => {
		const connection = await NatsConnection.open(settings(env), log);
		ends.push(() => connection.close());
		return connection;
	};

	it("killed and started again: the connection and its subscriptions come back by themselves", async () => {
		const server = await start();
		const connection = await connect({ NATS_SERVER: server.url });
		const states: boolean[] = [];
		connection.onState((up) => states.push(up));
		let heard = 0;
		connection.raw.subscribe("x", { callback: () => heard++ });
		for (let round = 1; round <= 2; round++) {
			await server.kill();
			await until("the loss is noticed", () => !connection.up);
			expect(states).toHaveLength(2 * round - 1);
			await server.restart();
			await connection.flushed();
			expect(connection.up).toBe(true);
			connection.raw.publish("x");
			await until("the message came", () => heard === round);
		}
		expect(states).toEqual([false, true, false, true]);
	});

	it("a wait for the server's answer ends with the connection, and with its signal", async () => {
		const server = await start();
		const connection = await connect({ NATS_SERVER: server.url });
		await server.kill();
		await until("the loss is noticed", () => !connection.up);
		const giveUp = new AbortController();
		const given = connection.flushed(giveUp.signal);
		giveUp.abort();
		await expect(given).rejects.toThrow(/not waited for any more/);
		await expect(connection.flushed(AbortSignal.abort())).rejects.toThrow(/not waited for any more/);
		const waiting = connection.flushed();
		await connection.close();
		await expect(waiting).rejects.toThrow(/closed/);
	});

	it("a server that starts after its clients is waited for", async () => {
		const port = await freePort();
		const opening = connect({ NATS_SERVER: `127.0.0.1:${port}` });
		await until("the wait is told", () => lines.some((line) => line.includes("NATS is not reached yet")));
		await start({ port });
		expect((await opening).up).toBe(true);
	});

	it("announces the largest message", async () => {
		const server = await start({ config: "max_payload: 65536" });
		const connection = await connect({ NATS_SERVER: server.url });
		expect(connection.maxPayload).toBe(65_536);
	});

	const seed = nkeys.createUser();
	const logins: [string, string, Record<string, string>, Record<string, string>][] = [
		[
			"user and password",
			"authorization { user: me, password: secret }",
			{ NATS_AUTH_USERNAME: "me", NATS_AUTH_PASSWORD: "secret" },
			{ NATS_AUTH_USERNAME: "me", NATS_AUTH_PASSWORD: "wrong" },
		],
		["a token", "authorization { token: t0ken }", { NATS_AUTH_TOKEN: "t0ken" }, { NATS_AUTH_TOKEN: "other" }],
		[
			"an nkey",
			`authorization { users: [ { nkey: ${seed.getPublicKey()} } ] }`,
			{ NATS_AUTH_NKEY: new TextDecoder().decode(seed.getSeed()) },
			{ NATS_AUTH_NKEY: new TextDecoder().decode(nkeys.createUser().getSeed()) },
		],
	];
	it.each(logins)("%s are taken, others refused", async (_name, config, right, wrong) => {
		const server = await start({ config });
		await connect({ NATS_SERVER: server.url, ...right });
		const refused = NatsConnection.open(
			settings({ NATS_SERVER: server.url, NATS_STARTUP_CONNECT_TIMEOUT_SECONDS: "0.2", ...wrong }),
			log,
		);
		await expect(refused).rejects.toThrow(/authorization violation/i);
	});

	it("takes user and password from the address", async () => {
		const server = await start({ config: "authorization { user: me, password: secret }" });
		expect((await connect({ NATS_SERVER: `nats://me:secret@127.0.0.1:${server.port}` })).up).toBe(true);
	});
});
