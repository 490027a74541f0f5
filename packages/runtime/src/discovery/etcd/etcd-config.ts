// SPDX-License-Identifier: Apache-2.0
// How etcd is reached: Dynamo's ETCD_* variables.
import { DynamoError, ENV } from "@dynamo-ts/protocols/internal";
import type { EnvReader } from "../../config.js";

/** How this process reaches etcd. Times are milliseconds unless the name says otherwise. */
export interface EtcdConfig {
	/** `http://host:port` or `https://host:port`, one or several. */
	readonly endpoints: readonly string[];
	/** Records of a process that dies are gone after this. */
	readonly leaseTtlSeconds: number;
	/** How long an etcd that does not answer is tried at start before the process gives up. */
	readonly startupTimeoutMs: number;
	/** HTTP/2 pings on a silent connection, and how long an answer may take. */
	readonly keepAliveIntervalMs: number;
	readonly keepAliveTimeoutMs: number;
	readonly username?: string;
	readonly password?: string;
	/** Files, or the PEM text itself: whom to trust, and who we are. */
	readonly ca?: string;
	readonly clientCert?: string;
	readonly clientKey?: string;
}

/** @throws DynamoError `InvalidArgument`. */
export function readEtcdConfig(read: EnvReader): EtcdConfig {
	const optional = (name: string): string | undefined => read.text(name, "") || undefined;
	const listed = read.text(ENV.ETCD_ENDPOINTS, "http://localhost:2379");
	const tls = optional(ENV.ETCD_AUTH_CA) ?? optional(ENV.ETCD_AUTH_CLIENT_CERT);
	const endpoints = listed
		.split(",")
		.map((text) => text.trim())
		.filter((text) => text !== "")
		.map((text) => endpointUrl(text, tls !== undefined));
	const [first] = endpoints;
	if (first === undefined || endpoints.some((url) => url.startsWith("https:") !== first.startsWith("https:"))) {
		throw bad(`${ENV.ETCD_ENDPOINTS}=${listed} is not valid: it must be URLs, all http or all https`);
	}
	const pairs = [
		[ENV.ETCD_AUTH_USERNAME, ENV.ETCD_AUTH_PASSWORD],
		[ENV.ETCD_AUTH_CLIENT_CERT, ENV.ETCD_AUTH_CLIENT_KEY],
	] as const;
	for (const [a, b] of pairs) {
		if ((optional(a) === undefined) !== (optional(b) === undefined))
			throw bad(`${a} and ${b} go together: set both`, a);
	}
	return {
		endpoints,
		leaseTtlSeconds: read.integer(ENV.ETCD_LEASE_TTL, 30, 1, 86_400),
		startupTimeoutMs: 1000 * read.integer(ENV.ETCD_STARTUP_CONNECT_TIMEOUT_SECONDS, 120, 1, 2_000_000),
		keepAliveIntervalMs: 1000 * read.integer(ENV.ETCD_KEEPALIVE_INTERVAL_SECONDS, 10, 1, 86_400),
		keepAliveTimeoutMs: 1000 * read.integer(ENV.ETCD_KEEPALIVE_TIMEOUT_SECONDS, 5, 1, 86_400),
		...defined({
			username: optional(ENV.ETCD_AUTH_USERNAME),
			password: optional(ENV.ETCD_AUTH_PASSWORD),
			ca: optional(ENV.ETCD_AUTH_CA),
			clientCert: optional(ENV.ETCD_AUTH_CLIENT_CERT),
			clientKey: optional(ENV.ETCD_AUTH_CLIENT_KEY),
		}),
	};
}

/** `scheme://host:port` of an endpoint; without a scheme it is https when there is something to do TLS with. */
function endpointUrl(text: string, tls: boolean): string {
	let url: URL;
	try {
		url = new URL(text.includes("://") ? text : `${tls ? "https" : "http"}://${text}`);
	} catch {
		throw bad(`${ENV.ETCD_ENDPOINTS} has ${text}, which is not a URL like http://host:2379`);
	}
	if (url.protocol !== "http:" && url.protocol !== "https:") {
		throw bad(`${ENV.ETCD_ENDPOINTS} has ${text}: the scheme must be http or https`);
	}
	// The URL forgets a port that is its scheme's default, which is not etcd's.
	const port = /:(\d+)\/?$/.exec(text)?.[1] ?? "2379";
	return `${url.protocol}//${url.hostname}:${port}`;
}

function defined<T extends object>(values: T): { [K in keyof T]?: NonNullable<T[K]> } {
	return Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined)) as never;
}

function bad(text: string, variable: string = ENV.ETCD_ENDPOINTS): DynamoError {
	return new DynamoError("InvalidArgument", text, { publicMessage: text, param: variable });
}
