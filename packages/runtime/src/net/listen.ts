// SPDX-License-Identifier: Apache-2.0
import { type AddressInfo, isIPv6, type Server } from "node:net";
import { networkInterfaces } from "node:os";
import { DynamoError } from "@dynamo-ts/protocols/internal";
import type { Logger } from "../observability/logging.js";

/**
 * Connections that may wait to be accepted; the kernel cuts it down to its own limit (net.core.somaxconn). Thousands of
 * streams can begin in one turn of the event loop, and a dial that finds no room is tried again only after a second.
 */
const BACKLOG = 65_535;

/**
 * Listens and returns the port.
 * @param purpose said in the error: what the port is for.
 * @throws DynamoError `Unavailable` with address, purpose and reason.
 */
export async function listenTcp(
	server: Server,
	host: string,
	port: number,
	purpose: string,
	log: Logger,
): Promise<number> {
	await new Promise<void>((resolve, reject) => {
		const failed = (error: NodeJS.ErrnoException) => {
			const why = error.code === "EADDRINUSE" ? "the port is in use; choose another, or 0 for any" : error.message;
			const text = `${purpose}: cannot listen on ${formatHostPort(host, port)}: ${why}`;
			reject(new DynamoError("Unavailable", text, { publicMessage: text, cause: error }));
		};
		server.once("error", failed);
		server.listen({ host, port, backlog: BACKLOG }, () => {
			server.removeListener("error", failed);
			resolve();
		});
	});
	// Accept errors (no file descriptors left, say) come again when there is room: the listener stays.
	server.on("error", (error) => log.warn("listener error", { purpose, error }));
	return (server.address() as AddressInfo).port;
}

/** `host:port`, IPv6 addresses in brackets. */
export function formatHostPort(host: string, port: number): string {
	return isIPv6(host) ? `[${host}]:${port}` : `${host}:${port}`;
}

/** Reads {@link formatHostPort}; undefined for anything else. */
export function parseHostPort(text: string): { host: string; port: number } | undefined {
	const match = /^(?:\[([0-9A-Fa-f:.%a-z]+)\]|([^:/[\]\s]+)):(\d{1,5})$/.exec(text);
	if (match === null) return undefined;
	const port = Number(match[3]);
	if (port < 1 || port > 65_535) return undefined;
	return { host: (match[1] ?? match[2]) as string, port };
}

/** Where others reach a listener on `host`: for "all addresses" the first one of an outside interface, else loopback. */
export function advertisedHost(host: string): string {
	if (host !== "0.0.0.0" && host !== "::" && host !== "") return host;
	for (const addresses of Object.values(networkInterfaces())) {
		for (const address of addresses ?? []) {
			if (!address.internal && address.family === "IPv4") return address.address;
		}
	}
	return "127.0.0.1";
}
