// SPDX-License-Identifier: Apache-2.0
// How a process reaches NATS: servers, credentials and TLS, from Dynamo's variables.
import { readFileSync } from "node:fs";
import { isIP } from "node:net";
import { checkServerIdentity, type PeerCertificate } from "node:tls";
import { DynamoError, ENV } from "@dynamo-ts/protocols/internal";
import type { Authenticator, ConnectionOptions } from "nats";
import type { EnvReader } from "../config.js";

/** Where NATS is and how to log in. Times are milliseconds. */
export interface NatsSettings {
	/** One or several `nats://[user:password@]host[:port]` or `tls://…`, separated by commas. */
	readonly server: string;
	/** The first of these that is given counts: user and password, token, nkey, credentials file, what the URL says. */
	readonly user?: string;
	readonly password?: string;
	readonly token?: string;
	/** An nkey's seed (`SU…`). */
	readonly nkey?: string;
	/** Path of a file with JWT and nkey seed. */
	readonly credentialsFile?: string;
	/** PEM file of the authority that signed the server's certificate; turns TLS on. */
	readonly tlsCaPath?: string;
	/** PEM files of the certificate that this process shows to the server. */
	readonly tlsCertPath?: string;
	readonly tlsKeyPath?: string;
	/** TLS without looking at the server's certificate. */
	readonly tlsInsecure: boolean;
	/** How long a process tries to reach NATS before its start fails. */
	readonly startupTimeoutMs: number;
}

/** @throws DynamoError `InvalidArgument` for a value that is not valid. */
export function natsSettingsFromEnv(read: EnvReader): NatsSettings {
	const optional = (name: string): string | undefined => read.text(name, "") || undefined;
	const settings: Record<keyof NatsSettings, unknown> = {
		server: read.text(ENV.NATS_SERVER, "nats://localhost:4222"),
		user: optional(ENV.NATS_AUTH_USERNAME),
		password: optional(ENV.NATS_AUTH_PASSWORD),
		token: optional(ENV.NATS_AUTH_TOKEN),
		nkey: optional(ENV.NATS_AUTH_NKEY),
		credentialsFile: optional(ENV.NATS_AUTH_CREDENTIALS_FILE),
		tlsCaPath: optional(ENV.NATS_TLS_CA_CERT_PATH),
		tlsCertPath: optional(ENV.NATS_TLS_CLIENT_CERT_PATH),
		tlsKeyPath: optional(ENV.NATS_TLS_CLIENT_KEY_PATH),
		tlsInsecure: read.flag(ENV.NATS_TLS_INSECURE, false),
		startupTimeoutMs: read.seconds(ENV.NATS_STARTUP_CONNECT_TIMEOUT_SECONDS, 30),
	};
	return Object.fromEntries(
		Object.entries(settings).filter(([, value]) => value !== undefined),
	) as unknown as NatsSettings;
}

/** The servers without credentials, for messages. */
export function natsServerNames(settings: NatsSettings): string {
	return settings.server.replaceAll(/\/\/[^@/,]*@/g, "//");
}

/**
 * What the NATS library is told.
 * @throws DynamoError `InvalidArgument` that names the variable: a bad address, half a certificate, a file that cannot
 * be read.
 */
export function natsConnectionOptions(settings: NatsSettings, nats: typeof import("nats")): ConnectionOptions {
	const urls = settings.server
		.split(",")
		.map((text) => text.trim())
		.filter((text) => text !== "")
		.map((text) => serverUrl(text));
	if (urls.length === 0) throw bad(`${ENV.NATS_SERVER} names no server`);
	const hosts = urls.map((url) => url.hostname.replace(/^\[|\]$/g, ""));
	const tls = tlsOptions(
		settings,
		hosts,
		urls.some((url) => url.protocol === "tls:"),
	);
	const authenticator = authenticatorOf(settings, urls, nats);
	return {
		servers: urls.map((url) => `${url.hostname}:${url.port || "4222"}`),
		...(authenticator === undefined ? {} : { authenticator }),
		...(tls === undefined ? {} : { tls }),
	};
}

function serverUrl(text: string): URL {
	let url: URL | undefined;
	try {
		url = new URL(text.includes("://") ? text : `nats://${text}`);
	} catch {
		// Refused below.
	}
	if (url === undefined || !["nats:", "tls:"].includes(url.protocol) || url.hostname === "") {
		throw bad(`${ENV.NATS_SERVER}: "${text}" is not nats://host:port or tls://host:port`);
	}
	return url;
}

function authenticatorOf(
	settings: NatsSettings,
	urls: readonly URL[],
	nats: typeof import("nats"),
): Authenticator | undefined {
	const { user, password, token, nkey, credentialsFile } = settings;
	if ((user === undefined) !== (password === undefined)) {
		throw bad(`${ENV.NATS_AUTH_USERNAME} and ${ENV.NATS_AUTH_PASSWORD} must both be set`);
	}
	const text = new TextEncoder();
	if (user !== undefined) return nats.usernamePasswordAuthenticator(user, password);
	if (token !== undefined) return nats.tokenAuthenticator(token);
	if (nkey !== undefined) return nats.nkeyAuthenticator(text.encode(nkey));
	if (credentialsFile !== undefined) {
		// Read at each login, so that a renewed file is taken.
		readPem(credentialsFile, ENV.NATS_AUTH_CREDENTIALS_FILE);
		return (nonce) =>
			nats.credsAuthenticator(readPem(credentialsFile, ENV.NATS_AUTH_CREDENTIALS_FILE))(
				nonce,
			) as ReturnType<Authenticator>;
	}
	const login = urls.find((url) => url.username !== "");
	if (login === undefined) return undefined;
	const name = decodeURIComponent(login.username);
	return login.password === ""
		? nats.tokenAuthenticator(name)
		: nats.usernamePasswordAuthenticator(name, decodeURIComponent(login.password));
}

function tlsOptions(
	settings: NatsSettings,
	hosts: readonly string[],
	asked: boolean,
): (ConnectionOptions["tls"] & Record<string, unknown>) | undefined {
	const { tlsCaPath, tlsCertPath, tlsKeyPath, tlsInsecure } = settings;
	if ((tlsCertPath === undefined) !== (tlsKeyPath === undefined)) {
		throw bad(`${ENV.NATS_TLS_CLIENT_CERT_PATH} and ${ENV.NATS_TLS_CLIENT_KEY_PATH} must both be set`);
	}
	if (!asked && tlsCaPath === undefined && tlsCertPath === undefined && !tlsInsecure) return undefined;
	const addresses = hosts.filter((host) => isIP(host) !== 0);
	return {
		...(tlsCaPath === undefined ? {} : { ca: readPem(tlsCaPath, ENV.NATS_TLS_CA_CERT_PATH).toString() }),
		...(tlsCertPath === undefined ? {} : { cert: readPem(tlsCertPath, ENV.NATS_TLS_CLIENT_CERT_PATH).toString() }),
		...(tlsKeyPath === undefined ? {} : { key: readPem(tlsKeyPath, ENV.NATS_TLS_CLIENT_KEY_PATH).toString() }),
		...(tlsInsecure ? { rejectUnauthorized: false } : {}),
		// The library compares with "localhost" when a server is given by its address.
		checkServerIdentity(host: string, certificate: PeerCertificate): Error | undefined {
			const names = host === "localhost" && !hosts.includes(host) ? addresses : [host];
			let problem: Error | undefined;
			for (const name of names) {
				problem = checkServerIdentity(name, certificate);
				if (problem === undefined) return undefined;
			}
			return problem;
		},
	};
}

function readPem(path: string, variable: string): Buffer {
	try {
		return readFileSync(path);
	} catch (error) {
		throw bad(`${variable}: ${(error as Error).message}`, error);
	}
}

function bad(text: string, cause?: unknown): DynamoError {
	return new DynamoError("InvalidArgument", text, { publicMessage: text, cause });
}
