// SPDX-License-Identifier: Apache-2.0
// The few calls to the Kubernetes API that discovery needs: requests with a deadline, and watches by lines.
import { Agent as HttpAgent, request as httpRequest, type IncomingMessage, type RequestOptions } from "node:http";
import { Agent as HttpsAgent, request as httpsRequest } from "node:https";
import { isJsonObject, parseJson } from "@dynamo-ts/protocols/internal";
import type { KubeAccess } from "./kube-access.js";

const MAX_BODY_BYTES = 256 * 1024 * 1024;
const MAX_LINE_BYTES = 16 * 1024 * 1024;

/** The API answered, but not with success. */
export class KubeStatusError extends Error {
	readonly status: number;

	constructor(status: number, message: string) {
		super(message);
		this.status = status;
	}

	/** Trying again may help: the server is overloaded, starting or broken. */
	get transient(): boolean {
		return this.status >= 500 || this.status === 429 || this.status === 408;
	}
}

export interface KubeRequest {
	readonly method: "GET" | "PATCH" | "DELETE";
	readonly path: string;
	readonly body?: string;
	readonly contentType?: string;
	readonly timeoutMs: number;
}

/** Speaks HTTP/1.1 with an API server over kept connections. */
export class KubeClient {
	readonly #access: KubeAccess;
	readonly #agent: HttpAgent;
	readonly #open = new Set<() => void>();
	#closed = false;

	constructor(access: KubeAccess) {
		this.#access = access;
		const options = { keepAlive: true, maxFreeSockets: 4 };
		this.#agent =
			access.server.protocol === "https:" ? new HttpsAgent({ ...options, ...access.tls }) : new HttpAgent(options);
	}

	/** Address of the API server. */
	get server(): string {
		return this.#access.server.href;
	}

	/**
	 * Sends a request and reads its answer.
	 * @throws KubeStatusError for a status other than 2xx, Error when the server is not reached or too slow.
	 */
	async send(request: KubeRequest): Promise<unknown> {
		const { response, end } = await this.#start(request, request.timeoutMs);
		try {
			return await readAnswer(response, request.path);
		} finally {
			end();
		}
	}

	/**
	 * Opens a watch and calls back for each event until it ends.
	 * @param idleMs the longest silence.
	 * @param onEvent returning false ends the watch.
	 * @param onOpen the server has taken it.
	 * @throws as {@link send}; also when the connection is lost in the midst of a line.
	 */
	async watch(path: string, idleMs: number, onEvent: (event: unknown) => boolean, onOpen: () => void): Promise<void> {
		const { response, end, touch } = await this.#start({ method: "GET", path, timeoutMs: idleMs }, idleMs);
		try {
			if (response.statusCode !== 200) await readAnswer(response, path);
			onOpen();
			let rest: Buffer = Buffer.alloc(0);
			for await (const chunk of response as AsyncIterable<Buffer>) {
				touch();
				rest = rest.length === 0 ? chunk : Buffer.concat([rest, chunk]);
				if (rest.length > MAX_LINE_BYTES) throw new Error(`a line of ${path} is too large`);
				let from = 0;
				for (let at = rest.indexOf(0x0a); at >= 0; at = rest.indexOf(0x0a, from)) {
					if (at > from && !onEvent(parseJson(rest.subarray(from, at)))) return;
					from = at + 1;
				}
				rest = rest.subarray(from);
			}
		} finally {
			end();
		}
	}

	/** Breaks off everything. Idempotent. */
	close(): void {
		this.#closed = true;
		for (const end of [...this.#open]) end();
		this.#agent.destroy();
	}

	async #start(
		{ method, path, body, contentType }: KubeRequest,
		timeoutMs: number,
	): Promise<{ response: IncomingMessage; end: () => void; touch: () => void }> {
		const token = await this.#access.token();
		if (this.#closed) throw new Error("closed");
		const { server } = this.#access;
		const options: RequestOptions = {
			method,
			host: server.hostname.replace(/^\[|\]$/g, ""),
			port: server.port || (server.protocol === "https:" ? 443 : 80),
			path: server.pathname.replace(/\/$/, "") + path,
			agent: this.#agent,
			headers: {
				accept: "application/json",
				...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
				...(body === undefined ? {} : { "content-type": contentType, "content-length": Buffer.byteLength(body) }),
			},
		};
		const outgoing = server.protocol === "https:" ? httpsRequest(options) : httpRequest(options);
		const late = (): void => void outgoing.destroy(new Error(`no answer from ${server.host} within ${timeoutMs} ms`));
		let timer = setTimeout(late, timeoutMs);
		const end = (): void => {
			clearTimeout(timer);
			this.#open.delete(end);
			// A response that was read to its end has given its connection back already.
			if (incoming?.complete !== true) outgoing.destroy();
		};
		const touch = (): void => {
			clearTimeout(timer);
			timer = setTimeout(late, timeoutMs);
		};
		let incoming: IncomingMessage | undefined;
		this.#open.add(end);
		try {
			incoming = await new Promise<IncomingMessage>((resolve, reject) => {
				outgoing.once("response", resolve);
				outgoing.on("error", reject);
				outgoing.once("close", () => reject(new Error("closed")));
				outgoing.end(body);
			});
			return { response: incoming, end, touch };
		} catch (error) {
			end();
			throw error;
		}
	}
}

async function readAnswer(response: IncomingMessage, path: string): Promise<unknown> {
	const chunks: Buffer[] = [];
	let bytes = 0;
	for await (const chunk of response) {
		bytes += chunk.length;
		if (bytes > MAX_BODY_BYTES) throw new Error(`the answer to ${path} is too large`);
		chunks.push(chunk);
	}
	const body = Buffer.concat(chunks);
	const status = response.statusCode ?? 0;
	let value: unknown;
	try {
		value = parseJson(body);
	} catch {
		if (status >= 200 && status < 300) throw new Error("the API server's answer is not JSON");
	}
	if (status >= 200 && status < 300) return value;
	const message =
		isJsonObject(value) && typeof value.message === "string" ? value.message : body.toString().slice(0, 300);
	throw new KubeStatusError(status, `HTTP ${status} ${message}`.trim());
}
