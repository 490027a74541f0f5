// SPDX-License-Identifier: Apache-2.0
import type { EndpointRecord, RequestPlaneCodec } from "@dynamo-ts/protocols/internal";
import {
	createLogger,
	InProcessClient,
	type InProcessRegistry,
	InProcessServer,
	type RequestPlaneServer,
	TcpRequestPlaneClient,
	TcpRequestPlaneServer,
} from "@dynamo-ts/runtime/internal";
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

for (const codec of ["msgpack", "json"] as const) {
	requestPlaneConformance(`TCP, ${codec}`, async () => {
		const server = await TcpRequestPlaneServer.listen({
			host: "127.0.0.1",
			port: 0,
			maxMessageBytes: 32 * 1024 * 1024,
			connectTimeoutMs: 5000,
			maxBufferedResponseBytes: BUFFER_LIMIT,
			log,
		});
		const client = await TcpRequestPlaneClient.open({
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
		});
		return {
			server,
			client,
			instance: (path) => instanceOf(server, path, codec),
			bufferLimit: BUFFER_LIMIT,
			dispose: async () => {},
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
		dispose: async () => {},
	};
});
