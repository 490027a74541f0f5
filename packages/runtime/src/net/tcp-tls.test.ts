// SPDX-License-Identifier: Apache-2.0
import { copyFileSync, writeFileSync } from "node:fs";
import type { AddressInfo, Server, Socket } from "node:net";
import { join } from "node:path";
import type { TLSSocket } from "node:tls";
import { CertificateAuthority, findOpenssl, titled, until } from "@dynamo-ts/testing/internal";
import { afterAll, afterEach, describe, expect, it, vi } from "vitest";
import { runtimeConfigFromEnv } from "../config.js";
import { createLogger } from "../observability/logging.js";
import { createStreamServer, dialStream } from "./streams.js";
import { loadTcpTls, type TcpTls } from "./tcp-tls.js";

const openssl = findOpenssl();
const missing = openssl.missing;
const lines: string[] = [];
const log = createLogger({ filter: "info", format: "readable", ansi: false, localTime: false }, "test", (line) => {
	lines.push(line);
});
const load = (env: Record<string, string>): TcpTls =>
	loadTcpTls(runtimeConfigFromEnv({ DYN_TCP_TLS_HANDSHAKE_TIMEOUT_SECS: "20", ...env }).tcpTls, log);

describe("settings", () => {
	it("without any, both sides are plain", () => {
		expect(load({})).toEqual({ server: undefined, client: undefined });
	});

	it.each([
		[{ DYN_TCP_TLS_CERT_PATH: "/x" }, /DYN_TCP_TLS_CERT_PATH and DYN_TCP_TLS_KEY_PATH must both be set/],
		[{ DYN_TCP_TLS_CLIENT_CA_CERT_PATH: "/x" }, /DYN_TCP_TLS_CLIENT_CA_CERT_PATH needs DYN_TCP_TLS_CERT_PATH/],
		[{ DYN_TCP_TLS_CLIENT_KEY_PATH: "/x" }, /DYN_TCP_TLS_CLIENT_CERT_PATH and .*_KEY_PATH must both be set/],
		[
			{ DYN_TCP_TLS_CLIENT_CERT_PATH: "/x", DYN_TCP_TLS_CLIENT_KEY_PATH: "/y" },
			/DYN_TCP_TLS_CLIENT_CERT_PATH needs DYN_TCP_TLS_CA_CERT_PATH/,
		],
		[{ DYN_TCP_TLS_CA_CERT_PATH: "/no/such/file" }, /DYN_TCP_TLS_CA_CERT_PATH: ENOENT/],
		[{ DYN_TCP_TLS_CA_CERT_PATH: import.meta.filename }, /DYN_TCP_TLS_CA_CERT_PATH: .* is no PEM file/],
		[{ DYN_TCP_TLS_HANDSHAKE_TIMEOUT_SECS: "soon" }, /DYN_TCP_TLS_HANDSHAKE_TIMEOUT_SECS=soon is not valid/],
	])("%j is refused", (env, message) => {
		expect(() => load(env)).toThrow(message);
	});
});

describe.skipIf(missing)(titled("connections", missing), () => {
	const authority = missing === "" ? new CertificateAuthority() : undefined;
	const stranger = missing === "" ? new CertificateAuthority("stranger") : undefined;
	const ours = authority?.sign() ?? { cert: "", key: "" };
	const theirs = stranger?.sign() ?? { cert: "", key: "" };
	const ca = authority?.ca ?? "";
	const serverEnv = { DYN_TCP_TLS_CERT_PATH: ours.cert, DYN_TCP_TLS_KEY_PATH: ours.key };
	const mutualEnv = { ...serverEnv, DYN_TCP_TLS_CLIENT_CA_CERT_PATH: ca };
	const clientEnv = { DYN_TCP_TLS_CA_CERT_PATH: ca };
	const shown = { DYN_TCP_TLS_CLIENT_CERT_PATH: ours.cert, DYN_TCP_TLS_CLIENT_KEY_PATH: ours.key };

	const servers: Server[] = [];
	const sockets: Socket[] = [];
	afterEach(() => {
		for (const socket of sockets.splice(0)) socket.destroy();
		for (const server of servers.splice(0)) server.close();
		vi.restoreAllMocks();
	});
	afterAll(() => {
		authority?.remove();
		stranger?.remove();
	});

	/** An echo server. */
	const listen = async (tls: TcpTls): Promise<number> => {
		const server = createStreamServer(tls.server, log, (socket) => {
			sockets.push(socket);
			socket.on("error", () => {});
			socket.pipe(socket);
		});
		servers.push(server);
		await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", () => resolve()));
		return (server.address() as AddressInfo).port;
	};
	/** Says hello, and resolves with the echo or the failure. */
	const hello = (port: number, tls: TcpTls, host = "127.0.0.1"): Promise<string> =>
		new Promise((resolve) => {
			const socket = dialStream({
				host,
				port,
				tls: tls.client,
				connectTimeoutMs: 20_000,
				onReady: () => socket.setTimeout(0),
			});
			sockets.push(socket);
			socket.write("hello");
			socket.on("data", (bytes) => resolve(bytes.toString()));
			socket.on("timeout", () => resolve("timeout"));
			socket.on("error", (error) => resolve(error.message));
			socket.on("close", () => resolve("closed"));
		});

	it("a peer whose certificate the authority signed is spoken to", async () => {
		const port = await listen(load(serverEnv));
		expect(await hello(port, load(clientEnv))).toBe("hello");
		expect(await hello(port, load(clientEnv), "localhost")).toBe("hello");
	});

	it("a second connection takes the first one's session up", async () => {
		const port = await listen(load(mutualEnv));
		const tls = load({ ...clientEnv, ...shown });
		expect(await hello(port, tls)).toBe("hello");
		expect(await hello(port, tls)).toBe("hello");
		expect(sockets.filter((socket) => (socket as TLSSocket).isSessionReused?.()).length).toBeGreaterThan(0);
	});

	it("a certificate of another authority, or for another name, is refused", async () => {
		const port = await listen(load({ DYN_TCP_TLS_CERT_PATH: theirs.cert, DYN_TCP_TLS_KEY_PATH: theirs.key }));
		expect(await hello(port, load(clientEnv))).toMatch(/unable to|self.signed|signature/);
		const misnamed = await listen(load(serverEnv));
		expect(await hello(misnamed, load({ ...clientEnv, DYN_TCP_TLS_SERVER_NAME: "elsewhere" }))).toMatch(/altnames/);
	});

	it("DYN_TCP_TLS_SERVER_NAME names the certificate, DYN_TCP_TLS_INSECURE asks for none", async () => {
		const { cert, key } = authority?.sign("DNS:worker.cluster") ?? ours;
		const port = await listen(load({ DYN_TCP_TLS_CERT_PATH: cert, DYN_TCP_TLS_KEY_PATH: key }));
		expect(await hello(port, load(clientEnv))).toMatch(/altnames/);
		expect(await hello(port, load({ ...clientEnv, DYN_TCP_TLS_SERVER_NAME: "worker.cluster" }))).toBe("hello");
		expect(await hello(port, load({ DYN_TCP_TLS_INSECURE: "1" }))).toBe("hello");
	});

	it("mutual: a client without a certificate, or with a stranger's, is refused and told in the log", async () => {
		const port = await listen(load(mutualEnv));
		expect(await hello(port, load({ ...clientEnv, ...shown }))).toBe("hello");
		lines.length = 0;
		expect(await hello(port, load(clientEnv))).not.toBe("hello");
		const strange = { DYN_TCP_TLS_CLIENT_CERT_PATH: theirs.cert, DYN_TCP_TLS_CLIENT_KEY_PATH: theirs.key };
		expect(await hello(port, load({ ...clientEnv, ...strange }))).not.toBe("hello");
		await until("both are told", () => lines.filter((line) => line.includes("TLS handshake failed")).length === 2);
	});

	it("a plain client at a TLS listener, and the reverse, fail within the handshake's time", async () => {
		const quick = { DYN_TCP_TLS_HANDSHAKE_TIMEOUT_SECS: "0.2" };
		const secured = await listen(load({ ...serverEnv, ...quick }));
		expect(await hello(secured, load({}))).not.toBe("hello");
		const plain = await listen(load({}));
		expect(await hello(plain, load({ ...clientEnv, ...quick }))).not.toBe("hello");
	});

	it("replaced files are taken without a restart; broken ones are not", async () => {
		const folder = authority?.folder ?? "";
		const [cert, key] = [join(folder, "live.pem"), join(folder, "live-key.pem")];
		copyFileSync(ours.cert, cert);
		copyFileSync(ours.key, key);
		const port = await listen(load({ DYN_TCP_TLS_CERT_PATH: cert, DYN_TCP_TLS_KEY_PATH: key }));
		expect(await hello(port, load(clientEnv))).toBe("hello");
		const clock = vi.spyOn(performance, "now");
		const later = (ms: number) => clock.mockReturnValue(Number(performance.timeOrigin) + ms);

		writeFileSync(key, "nonsense");
		later(1e9);
		expect(await hello(port, load(clientEnv))).toBe("hello");
		copyFileSync(theirs.cert, cert);
		copyFileSync(theirs.key, key);
		later(2e9);
		expect(await hello(port, load(clientEnv))).not.toBe("hello");
		expect(await hello(port, load({ DYN_TCP_TLS_CA_CERT_PATH: stranger?.ca ?? "" }))).toBe("hello");
	});
});
