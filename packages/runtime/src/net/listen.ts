// SPDX-License-Identifier: Apache-2.0
import { type AddressInfo, isIPv6, type Server } from "node:net";
import { networkInterfaces } from "node:os";
import { DynamoError } from "@dynamo-ts/protocols/internal";
import type { Logger } from "../observability/logging.js";

/**
 * Connections that may wait to be accepted; the kernel cuts it down to its own limit (net.core.somaxconn). Thousands of
 * streams can begin in one turn of the event loop, and a dial that finds no room is tried again only after a second.
 */
export const DEFAULT_LISTEN_BACKLOG = 65_535;

export interface ListenAddress {
	readonly host: string;
	/** 0: any. */
	readonly port: number;
	/** Connections that may wait to be accepted; default {@link DEFAULT_LISTEN_BACKLOG}. */
	readonly backlog?: number | undefined;
	/** What it is for; said in errors. */
	readonly purpose: string;
	/** The environment variables that set the two; said in errors. */
	readonly variables: { readonly host: string; readonly port: string };
}

/**
 * Listens and returns the port.
 * @throws DynamoError `Unavailable` with address, purpose, reason and what to change.
 */
export async function listenTcp(server: Server, address: ListenAddress, log: Logger): Promise<number> {
	const { host, port, purpose } = address;
	await new Promise<void>((resolve, reject) => {
		const failed = (error: NodeJS.ErrnoException) => {
			const text = `${purpose}: cannot listen on ${formatHostPort(host, port)}: ${reasonOf(error, address)}`;
			reject(new DynamoError("Unavailable", text, { publicMessage: text, cause: error }));
		};
		server.once("error", failed);
		server.listen({ host, port, backlog: address.backlog ?? DEFAULT_LISTEN_BACKLOG }, () => {
			server.removeListener("error", failed);
			resolve();
		});
	});
	// Accept errors (no file descriptors left, say) come again when there is room: the listener stays.
	server.on("error", (error) => log.warn("listener error", { purpose, error }));
	return (server.address() as AddressInfo).port;
}

function reasonOf(error: NodeJS.ErrnoException, { variables }: ListenAddress): string {
	switch (error.code) {
		case "EADDRINUSE":
			return `the port is in use; choose another with ${variables.port} (0: any free one)`;
		case "EACCES":
			return `this user may not use the port; choose one above 1023 with ${variables.port}`;
		case "EADDRNOTAVAIL":
		case "ENOTFOUND":
			return `it is no address of this machine; set ${variables.host}`;
		default:
			return error.message;
	}
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
