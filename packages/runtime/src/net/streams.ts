// SPDX-License-Identifier: Apache-2.0
// Byte streams between processes: plain TCP or TLS, with the same events for both.
import { connect, createServer, type Server, type Socket } from "node:net";
import { createServer as createTlsServer } from "node:tls";
import type { Logger } from "../observability/logging.js";
import type { ClientTls, ServerTls } from "./tcp-tls.js";

/**
 * A listener; `onStream` gets each connection once it can be read and written.
 * @param log told of handshakes that fail.
 */
export function createStreamServer(
	tls: ServerTls | undefined,
	log: Logger,
	onStream: (socket: Socket) => void,
): Server {
	if (tls === undefined) {
		const server = createServer({ noDelay: true });
		return server.on("connection", onStream);
	}
	const server = createTlsServer({ ...tls.options(), noDelay: true });
	server.prependListener("connection", () => tls.refresh(server));
	server.on("secureConnection", onStream);
	server.on("tlsClientError", (error, socket) => {
		log.warn("TLS handshake failed", { client: socket.remoteAddress, reason: error.message });
		socket.destroy();
	});
	return server;
}

/** What a stream has to be told while it is dialled. */
export interface DialOptions {
	readonly host: string;
	readonly port: number;
	readonly tls: ClientTls | undefined;
	/** Milliseconds until the socket's `timeout` event; TLS has its own limit for the handshake. */
	readonly connectTimeoutMs: number;
	/** The stream can be written to and read from; the caller sets the socket's further timeout. */
	readonly onReady: () => void;
}

/** Dials. Failures come as the socket's `error`, `close` and `timeout` events. */
export function dialStream({ host, port, tls, connectTimeoutMs, onReady }: DialOptions): Socket {
	let socket: Socket;
	if (tls === undefined) {
		socket = connect({ host, port, noDelay: true });
		socket.once("connect", onReady);
	} else {
		socket = tls.connect(host, port);
		socket.once("connect", () => socket.setTimeout(tls.handshakeTimeoutMs));
		socket.once("secureConnect", onReady);
	}
	return socket.setTimeout(connectTimeoutMs);
}
