// SPDX-License-Identifier: Apache-2.0
// TLS and mutual TLS of the TCP listeners and connections between processes, by Dynamo's DYN_TCP_TLS_* variables.
import { readFileSync } from "node:fs";
import { isIP } from "node:net";
import { connect, createSecureContext, type SecureContextOptions, type Server, type TLSSocket } from "node:tls";
import { DynamoError, ENV } from "@dynamo-ts/protocols/internal";
import type { EnvReader } from "../config.js";
import type { Logger } from "../observability/logging.js";

/** PEM files and switches. Every process listens and dials, so all of them belong on each. */
export interface TcpTlsSettings {
	/** The listeners' certificate and key: both or none. */
	readonly certPath?: string;
	readonly keyPath?: string;
	/** Clients must show a certificate of this authority. */
	readonly clientCaPath?: string;
	/** The authority that signed the peers' certificates; turns TLS on for what this process dials. */
	readonly caPath?: string;
	/** What this process shows when it dials: both or none. */
	readonly clientCertPath?: string;
	readonly clientKeyPath?: string;
	/** TLS without looking at the peers' certificates. */
	readonly insecure: boolean;
	/** Name that the peers' certificates must bear; default: the host that is dialled. */
	readonly serverName?: string;
	/** Milliseconds. */
	readonly handshakeTimeoutMs: number;
}

/** @throws DynamoError `InvalidArgument` for a value that is not valid. */
export function tcpTlsSettingsFromEnv(read: EnvReader): TcpTlsSettings {
	const optional = (name: string): string | undefined => read.text(name, "") || undefined;
	const settings: Record<keyof TcpTlsSettings, unknown> = {
		certPath: optional(ENV.DYN_TCP_TLS_CERT_PATH),
		keyPath: optional(ENV.DYN_TCP_TLS_KEY_PATH),
		clientCaPath: optional(ENV.DYN_TCP_TLS_CLIENT_CA_CERT_PATH),
		caPath: optional(ENV.DYN_TCP_TLS_CA_CERT_PATH),
		clientCertPath: optional(ENV.DYN_TCP_TLS_CLIENT_CERT_PATH),
		clientKeyPath: optional(ENV.DYN_TCP_TLS_CLIENT_KEY_PATH),
		insecure: read.flag(ENV.DYN_TCP_TLS_INSECURE, false),
		serverName: optional(ENV.DYN_TCP_TLS_SERVER_NAME),
		handshakeTimeoutMs: read.seconds(ENV.DYN_TCP_TLS_HANDSHAKE_TIMEOUT_SECS, 3),
	};
	return Object.fromEntries(
		Object.entries(settings).filter(([, value]) => value !== undefined),
	) as unknown as TcpTlsSettings;
}

/** Peers whose last session is kept, so that the next connection to them costs no full handshake. */
const MAX_SESSIONS = 1024;
/** How long files are taken for unchanged, milliseconds; then the next connection looks at them. */
const RELOAD_AFTER_MS = 30_000;

/** Certificate and key out of files, read again when they were replaced; what cannot be read leaves the last ones. */
class Identity {
	readonly #read: () => SecureContextOptions;
	readonly #log: Logger;
	#options: SecureContextOptions;
	#text: string;
	#checkedAt = performance.now();

	constructor(read: () => SecureContextOptions, log: Logger) {
		this.#read = read;
		this.#log = log;
		this.#options = read();
		// A key that does not fit its certificate is told now.
		createSecureContext(this.#options);
		this.#text = textOf(this.#options);
	}

	get options(): SecureContextOptions {
		return this.#options;
	}

	/** True when the files have other contents than before. */
	changed(): boolean {
		const now = performance.now();
		if (now - this.#checkedAt < RELOAD_AFTER_MS) return false;
		this.#checkedAt = now;
		try {
			const options = this.#read();
			const text = textOf(options);
			if (text === this.#text) return false;
			createSecureContext(options);
			this.#options = options;
			this.#text = text;
			this.#log.info("certificates were replaced; new connections use the new ones");
			return true;
		} catch (error) {
			this.#log.warn("replaced certificates cannot be used; the last ones stay", { error });
			return false;
		}
	}
}

/** The listeners' side. */
export class ServerTls {
	readonly #identity: Identity;
	readonly #demandsClientCertificate: boolean;
	readonly handshakeTimeoutMs: number;

	constructor(settings: TcpTlsSettings, log: Logger) {
		const { certPath, keyPath, clientCaPath } = settings;
		this.#identity = loaded(
			() => ({
				cert: pem(certPath as string, ENV.DYN_TCP_TLS_CERT_PATH),
				key: pem(keyPath as string, ENV.DYN_TCP_TLS_KEY_PATH),
				...(clientCaPath === undefined ? {} : { ca: pem(clientCaPath, ENV.DYN_TCP_TLS_CLIENT_CA_CERT_PATH) }),
			}),
			`${ENV.DYN_TCP_TLS_CERT_PATH} and ${ENV.DYN_TCP_TLS_KEY_PATH}`,
			log,
		);
		this.#demandsClientCertificate = clientCaPath !== undefined;
		this.handshakeTimeoutMs = settings.handshakeTimeoutMs;
	}

	/** For `tls.createServer`. */
	options(): SecureContextOptions & { requestCert: boolean; rejectUnauthorized: boolean; handshakeTimeout: number } {
		const demanded = this.#demandsClientCertificate;
		return {
			...this.#identity.options,
			requestCert: demanded,
			rejectUnauthorized: demanded,
			handshakeTimeout: this.handshakeTimeoutMs,
		};
	}

	/** Called before each connection. */
	refresh(server: Server): void {
		if (this.#identity.changed()) server.setSecureContext(this.#identity.options);
	}
}

/** The dialling side. */
export class ClientTls {
	readonly #identity: Identity;
	readonly #insecure: boolean;
	readonly #serverName: string | undefined;
	readonly handshakeTimeoutMs: number;
	/** Newest last. */
	readonly #sessions = new Map<string, Buffer>();
	#context: ReturnType<typeof createSecureContext>;

	constructor(settings: TcpTlsSettings, log: Logger) {
		const { caPath, clientCertPath, clientKeyPath } = settings;
		this.#identity = loaded(
			() => ({
				// Certificates of a cluster come from its own authority: the system's do not count.
				ca: caPath === undefined ? [] : pem(caPath, ENV.DYN_TCP_TLS_CA_CERT_PATH),
				...(clientCertPath === undefined ? {} : { cert: pem(clientCertPath, ENV.DYN_TCP_TLS_CLIENT_CERT_PATH) }),
				...(clientKeyPath === undefined ? {} : { key: pem(clientKeyPath, ENV.DYN_TCP_TLS_CLIENT_KEY_PATH) }),
			}),
			`${ENV.DYN_TCP_TLS_CA_CERT_PATH}, ${ENV.DYN_TCP_TLS_CLIENT_CERT_PATH} and ${ENV.DYN_TCP_TLS_CLIENT_KEY_PATH}`,
			log,
		);
		this.#insecure = settings.insecure;
		this.#serverName = settings.serverName;
		this.handshakeTimeoutMs = settings.handshakeTimeoutMs;
		this.#context = createSecureContext(this.#identity.options);
	}

	/** Dials. */
	connect(host: string, port: number): TLSSocket {
		if (this.#identity.changed()) {
			this.#context = createSecureContext(this.#identity.options);
			this.#sessions.clear();
		}
		const name = this.#serverName ?? host;
		const peer = `${host} ${port}`;
		const session = this.#sessions.get(peer);
		const socket = connect({
			host,
			port,
			secureContext: this.#context,
			rejectUnauthorized: !this.#insecure,
			// Without a name the address that is dialled is compared.
			...(isIP(name) === 0 ? { servername: name } : {}),
			...(session === undefined ? {} : { session }),
		});
		socket.setNoDelay(true);
		socket.once("session", (next: Buffer) => {
			this.#sessions.delete(peer);
			this.#sessions.set(peer, next);
			if (this.#sessions.size <= MAX_SESSIONS) return;
			for (const oldest of this.#sessions.keys()) {
				this.#sessions.delete(oldest);
				break;
			}
		});
		return socket;
	}
}

/** Both sides of one process; an absent one means plain TCP. */
export interface TcpTls {
	readonly server: ServerTls | undefined;
	readonly client: ClientTls | undefined;
}

/**
 * Reads the files, and warns of halves that do not fit together.
 * @throws DynamoError `InvalidArgument` that names the variable: half a pair, a file that cannot be read or used.
 */
export function loadTcpTls(settings: TcpTlsSettings, log: Logger): TcpTls {
	const { certPath, keyPath, clientCaPath, caPath, clientCertPath, clientKeyPath, insecure } = settings;
	if ((certPath === undefined) !== (keyPath === undefined)) {
		throw bad(`${ENV.DYN_TCP_TLS_CERT_PATH} and ${ENV.DYN_TCP_TLS_KEY_PATH} must both be set`);
	}
	if (clientCaPath !== undefined && certPath === undefined) {
		throw bad(
			`${ENV.DYN_TCP_TLS_CLIENT_CA_CERT_PATH} needs ${ENV.DYN_TCP_TLS_CERT_PATH} and ${ENV.DYN_TCP_TLS_KEY_PATH}`,
		);
	}
	if ((clientCertPath === undefined) !== (clientKeyPath === undefined)) {
		throw bad(`${ENV.DYN_TCP_TLS_CLIENT_CERT_PATH} and ${ENV.DYN_TCP_TLS_CLIENT_KEY_PATH} must both be set`);
	}
	const trusts = caPath !== undefined || insecure;
	if (clientCertPath !== undefined && !trusts) {
		throw bad(`${ENV.DYN_TCP_TLS_CLIENT_CERT_PATH} needs ${ENV.DYN_TCP_TLS_CA_CERT_PATH}`);
	}
	if (certPath !== undefined && !trusts) {
		log.warn(
			`listeners use TLS, but what this process dials does not: set ${ENV.DYN_TCP_TLS_CA_CERT_PATH}, on every process`,
		);
	}
	if (certPath === undefined && trusts) {
		log.warn(
			`what this process dials uses TLS, but its listeners do not: set ${ENV.DYN_TCP_TLS_CERT_PATH} and ${ENV.DYN_TCP_TLS_KEY_PATH}, on every process`,
		);
	}
	if (clientCaPath !== undefined && clientCertPath === undefined) {
		log.warn(
			`listeners demand certificates, but this process shows none when it dials: set ${ENV.DYN_TCP_TLS_CLIENT_CERT_PATH} and ${ENV.DYN_TCP_TLS_CLIENT_KEY_PATH}, on every process`,
		);
	}
	if (insecure) log.warn(`${ENV.DYN_TCP_TLS_INSECURE} is set: the peers' certificates are not looked at`);
	return {
		server: certPath === undefined ? undefined : new ServerTls(settings, log),
		client: trusts ? new ClientTls(settings, log) : undefined,
	};
}

function loaded(read: () => SecureContextOptions, variables: string, log: Logger): Identity {
	try {
		return new Identity(read, log);
	} catch (error) {
		if (error instanceof DynamoError) throw error;
		throw bad(`${variables} cannot be used: ${(error as Error).message}`, error);
	}
}

function pem(path: string, variable: string): Buffer {
	let bytes: Buffer;
	try {
		bytes = readFileSync(path);
	} catch (error) {
		throw bad(`${variable}: ${(error as Error).message}`, error);
	}
	if (!bytes.includes("-----BEGIN ")) throw bad(`${variable}: ${path} is no PEM file`);
	return bytes;
}

function textOf(options: SecureContextOptions): string {
	return [options.ca, options.cert, options.key].map((part) => part?.toString() ?? "").join("\n");
}

function bad(text: string, cause?: unknown): DynamoError {
	return new DynamoError("InvalidArgument", text, { publicMessage: text, cause });
}
