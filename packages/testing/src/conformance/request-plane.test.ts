// SPDX-License-Identifier: Apache-2.0
import type { EndpointRecord, RequestPlaneCodec } from "@dynamo-ts/protocols/internal";
import {
	createLogger,
	InProcessClient,
	type InProcessRegistry,
	InProcessServer,
	loadTcpTls,
	NatsConnection,
	NatsRequestPlaneServer,
	openNatsClient,
	openTcpClient,
	type RequestPlaneServer,
	runtimeConfigFromEnv,
	TcpRequestPlaneServer,
	type TcpTls,
} from "@dynamo-ts/runtime/internal";
import { afterAll, beforeAll, describe, it } from "vitest";
import { CertificateAuthority, findOpenssl } from "../certificates.js";
import { titled } from "../found.js";
import { findNatsServer, NatsServer } from "../nats-server.js";
import { requestPlaneConformance } from "./request-plane.js";

const log = createLogger({ filter: "off", format: "readable", ansi: false, localTime: false });
const BUFFER_LIMIT = 256 * 1024;

function instanceOf(server: RequestPlaneServer, path: string, codec: RequestPlaneCodec): EndpointRecord {
	const [, namespace, component, endpoint] = path.split("/") as [string, string, string, string];
	return {
		type: "Endpoint",
		namespace,
		component,
		endpoint,
		instance_id: 0xab12n,
		transport: server.address(path),
		request_plane_codec: codec,
	};
}

const CLIENT = {
	responseHost: "127.0.0.1",
	responsePort: 0,
	connectTimeoutMs: 5000,
	ackTimeoutMs: 5000,
	callHomeTimeoutMs: 5000,
	firstResponseTimeoutMs: 20_000,
	idleTimeoutMs: 20_000,
	poolSize: 4,
	poolIdleMs: 60_000,
	maxMessageBytes: 32 * 1024 * 1024,
	log,
};
const SERVER = {
	host: "127.0.0.1",
	port: 0,
	maxMessageBytes: 32 * 1024 * 1024,
	connectTimeoutMs: 5000,
	maxBufferedResponseBytes: BUFFER_LIMIT,
	log,
};

function overTcp(name: string, codec: RequestPlaneCodec, tls: () => TcpTls): void {
	requestPlaneConformance(name, async () => {
		const server = await TcpRequestPlaneServer.listen({
			...SERVER,
			connectTimeoutMs: 30_000,
			serverTls: tls().server,
			clientTls: tls().client,
		});
		const client = await openTcpClient({
			...CLIENT,
			ackTimeoutMs: 30_000,
			callHomeTimeoutMs: 30_000,
			serverTls: tls().server,
			clientTls: tls().client,
		});
		return {
			server,
			client,
			instance: (path) => instanceOf(server, path, codec),
			bufferLimit: BUFFER_LIMIT,
			largestRequest: CLIENT.maxMessageBytes,
			dispose: async () => {},
		};
	});
}

for (const codec of ["msgpack", "json"] as const) {
	overTcp(`TCP, ${codec}`, codec, () => ({ server: undefined, client: undefined }));
}

const openssl = findOpenssl();
if (openssl.missing) {
	describe(titled("request plane conformance - TCP with mutual TLS", openssl.missing), () => {
		it.skip("is not run", () => {});
	});
} else {
	const authority = new CertificateAuthority();
	const { cert, key } = authority.sign();
	const tls = loadTcpTls(
		runtimeConfigFromEnv({
			DYN_TCP_TLS_CERT_PATH: cert,
			DYN_TCP_TLS_KEY_PATH: key,
			DYN_TCP_TLS_CA_CERT_PATH: authority.ca,
			DYN_TCP_TLS_CLIENT_CA_CERT_PATH: authority.ca,
			DYN_TCP_TLS_CLIENT_CERT_PATH: cert,
			DYN_TCP_TLS_CLIENT_KEY_PATH: key,
			// Hundreds of handshakes share one event loop here.
			DYN_TCP_TLS_HANDSHAKE_TIMEOUT_SECS: "30",
		}).tcpTls,
		log,
	);
	afterAll(() => authority.remove());
	overTcp("TCP with mutual TLS", "msgpack", () => tls);
}

const natsServer = findNatsServer();
if (natsServer.missing) {
	describe(titled("request plane conformance - NATS", natsServer.missing), () => {
		it.skip("is not run", () => {});
	});
} else {
	let nats: NatsServer;
	beforeAll(async () => {
		nats = await NatsServer.start({ jetStream: false });
	});
	afterAll(() => nats.stop());
	requestPlaneConformance("NATS", async () => {
		const { nats: settings } = runtimeConfigFromEnv({ NATS_SERVER: nats.url });
		// Two connections, as of two processes.
		const theirs = await NatsConnection.open(settings, log);
		const ours = await NatsConnection.open(settings, log);
		const server = new NatsRequestPlaneServer({ ...SERVER, connection: theirs });
		const client = await openNatsClient({ ...CLIENT, connection: ours });
		return {
			server,
			client,
			instance: (path) => instanceOf(server, path, "msgpack"),
			bufferLimit: BUFFER_LIMIT,
			largestRequest: ours.maxPayload,
			dispose: async () => {
				await ours.close();
				await theirs.close();
			},
		};
	});
}

requestPlaneConformance("in process", async () => {
	const registry: InProcessRegistry = new Map();
	const server = new InProcessServer(registry);
	const client = new InProcessClient(registry, {
		firstResponseTimeoutMs: 20_000,
		idleTimeoutMs: 20_000,
		maxWaitingItems: 1000,
		log,
	});
	return {
		server,
		client,
		instance: (path) => instanceOf(server, path, "msgpack"),
		bufferLimit: 1000,
		largestRequest: undefined,
		dispose: async () => {},
	};
});
