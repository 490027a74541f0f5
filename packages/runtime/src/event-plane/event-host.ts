// SPDX-License-Identifier: Apache-2.0
// Which address the sockets of the event plane are bound to, and under which one they are advertised.
import { lookup } from "node:dns/promises";
import { isIP, isIPv6 } from "node:net";
import { type NetworkInterfaceInfo, networkInterfaces } from "node:os";
import { DynamoError, ENV } from "@dynamo-ts/protocols/internal";

export interface EventHost {
	/** An IP address, without brackets. */
	readonly bind: string;
	readonly advertise: string;
}

type Interfaces = Readonly<Record<string, readonly NetworkInterfaceInfo[] | undefined>>;

function bad(variable: string, value: string, why: string): DynamoError {
	const text = `${variable}=${value} is not valid: ${why}`;
	return new DynamoError("InvalidArgument", text, { publicMessage: text, param: variable });
}

function isWildcard(ip: string): boolean {
	return /^(0\.0\.0\.0|[0:]+|::ffff:0\.0\.0\.0)$/i.test(ip);
}

/** The first address of an interface, IPv4 before IPv6. */
function addressOf(infos: readonly NetworkInterfaceInfo[]): string | undefined {
	return (infos.find((info) => info.family === "IPv4") ?? infos.find((info) => !info.scopeid))?.address;
}

/** An IP address, a host name or the name of an interface, as an IP address. */
async function resolve(variable: string, host: string, interfaces: Interfaces): Promise<string> {
	const bare = host.replace(/^\[(.*)\]$/, "$1");
	if (isIP(bare) !== 0) return bare;
	const infos = interfaces[host];
	if (infos !== undefined) {
		const address = addressOf(infos);
		if (address === undefined) throw bad(variable, host, "the interface has no address");
		return address;
	}
	try {
		return (await lookup(host, { family: 0 })).address;
	} catch {
		throw bad(variable, host, "it is no IP address, no interface of this machine and no host name that resolves");
	}
}

/**
 * Finds the addresses. Without a setting: the first that other machines can reach, else loopback. Only that one is
 * bound, not all interfaces, unless `bindHost` says so.
 * @param host from DYN_EVENT_PLANE_HOST: what is advertised; must not mean "all interfaces".
 * @param bindHost from DYN_EVENT_PLANE_BIND_HOST, where that is another address (0.0.0.0, or behind an address translation).
 * @throws DynamoError `InvalidArgument` for a host that is none.
 */
export async function resolveEventHost(
	host: string | undefined,
	bindHost: string | undefined,
	interfaces: Interfaces = networkInterfaces(),
): Promise<EventHost> {
	let advertise: string | undefined;
	if (host !== undefined) {
		advertise = await resolve(ENV.DYN_EVENT_PLANE_HOST, host, interfaces);
		if (isWildcard(advertise)) {
			throw bad(
				ENV.DYN_EVENT_PLANE_HOST,
				host,
				`others cannot connect to it; name one address (and set ${ENV.DYN_EVENT_PLANE_BIND_HOST}=${host} to listen on all)`,
			);
		}
	} else {
		const outside = Object.values(interfaces).flatMap((infos) => infos?.filter((info) => !info.internal) ?? []);
		advertise = addressOf(outside) ?? "127.0.0.1";
	}
	const bind = bindHost === undefined ? advertise : await resolve(ENV.DYN_EVENT_PLANE_BIND_HOST, bindHost, interfaces);
	return { bind, advertise };
}

/** `tcp://host:port`, IPv6 in brackets. */
export function zmqEndpoint(host: string, port: string | number): string {
	return `tcp://${isIPv6(host) ? `[${host}]` : host}:${port}`;
}
