// SPDX-License-Identifier: Apache-2.0
// How the API server is reached: a kubeconfig file if there is one, otherwise the settings that every pod gets.
import { readFile } from "node:fs/promises";
import { dirname, isAbsolute, join } from "node:path";
import { DynamoError, ENV } from "@dynamo-ts/protocols/internal";
import { errorText } from "../connection-report.js";
import type { KubernetesConfig } from "./kube-config.js";

/** Address of the API server and what proves who we are. */
export interface KubeAccess {
	readonly server: URL;
	readonly tls: {
		readonly ca?: string | Buffer;
		readonly cert?: string | Buffer;
		readonly key?: string | Buffer;
		readonly servername?: string;
		readonly rejectUnauthorized?: boolean;
	};
	/** The bearer token now; those of service accounts change. Undefined: none is needed. */
	token(): Promise<string | undefined>;
}

/** A token file is read again after this. */
const TOKEN_AGE_MS = 60_000;

/** @throws DynamoError `Unavailable` when there is neither; it says what was wrong with each. */
export async function kubeAccess(config: KubernetesConfig): Promise<KubeAccess> {
	let first: string;
	try {
		return await fromKubeconfig(config.kubeconfig);
	} catch (error) {
		first = errorText(error);
	}
	try {
		return await inCluster(config);
	} catch (error) {
		const text = `no way to the Kubernetes API: kubeconfig ${config.kubeconfig}: ${first}; in the cluster: ${errorText(error)}`;
		throw new DynamoError("Unavailable", text, { publicMessage: text, cause: error });
	}
}

async function inCluster(config: KubernetesConfig): Promise<KubeAccess> {
	const { serviceHost: host, servicePort: port, serviceAccountFolder: folder } = config;
	if (host === undefined || port === undefined) {
		throw new Error(`${ENV.KUBERNETES_SERVICE_HOST} and ${ENV.KUBERNETES_SERVICE_PORT} are not set`);
	}
	const token = tokenFile(join(folder, "token"));
	await token();
	return {
		server: new URL(`https://${host.includes(":") ? `[${host}]` : host}:${port}`),
		tls: { ca: await readFile(join(folder, "ca.crt")) },
		token,
	};
}

async function fromKubeconfig(path: string): Promise<KubeAccess> {
	const text = await readFile(path, "utf8");
	const { parse } = await import("yaml");
	const config = asObject(parse(text), "the file");
	const contextName = config["current-context"];
	const context = asObject(named(config, "contexts", contextName).context, `context ${contextName}`);
	const cluster = asObject(named(config, "clusters", context.cluster).cluster, `cluster ${context.cluster}`);
	const user = context.user ? asObject(named(config, "users", context.user).user ?? {}, `user ${context.user}`) : {};
	for (const kind of ["exec", "auth-provider", "username"]) {
		if (user[kind] !== undefined)
			throw new Error(`user ${context.user} has ${kind}, which is not supported: use a token`);
	}
	if (cluster["proxy-url"] !== undefined) throw new Error("proxy-url is not supported");
	const file = (name: unknown): string => {
		const value = String(name);
		return isAbsolute(value) ? value : join(dirname(path), value);
	};
	const pem = async (from: Record<string, unknown>, name: string): Promise<Buffer | undefined> => {
		const data = from[`${name}-data`];
		if (data !== undefined) return Buffer.from(String(data), "base64");
		return from[name] === undefined ? undefined : readFile(file(from[name]));
	};
	const tls = {
		ca: await pem(cluster, "certificate-authority"),
		cert: await pem(user, "client-certificate"),
		key: await pem(user, "client-key"),
		servername: cluster["tls-server-name"],
		rejectUnauthorized: cluster["insecure-skip-tls-verify"] === true ? false : undefined,
	};
	const { token, tokenFile: tokenPath } = user;
	return {
		server: new URL(String(cluster.server)),
		tls: Object.fromEntries(Object.entries(tls).filter(([, value]) => value !== undefined)),
		token:
			token === undefined && tokenPath !== undefined
				? tokenFile(file(tokenPath))
				: async () => (token === undefined ? undefined : String(token)),
	};
}

/** Reads a token again when it is old; while it cannot be read the last one stays. */
function tokenFile(path: string): () => Promise<string> {
	let token: string | undefined;
	let readAt = Number.NEGATIVE_INFINITY;
	return async () => {
		if (token !== undefined && performance.now() - readAt < TOKEN_AGE_MS) return token;
		readAt = performance.now();
		try {
			token = (await readFile(path, "utf8")).trim();
		} catch (error) {
			if (token === undefined) throw error;
		}
		return token;
	};
}

function named(config: Record<string, unknown>, list: string, name: unknown): Record<string, unknown> {
	const entries = Array.isArray(config[list]) ? (config[list] as Record<string, unknown>[]) : [];
	const found = entries.find((entry) => entry?.name === name);
	if (found === undefined) throw new Error(`${list} has none named ${JSON.stringify(name)}`);
	return found;
}

function asObject(value: unknown, what: string): Record<string, unknown> {
	if (typeof value !== "object" || value === null) throw new Error(`${what} is not a mapping`);
	return value as Record<string, unknown>;
}
