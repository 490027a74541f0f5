// SPDX-License-Identifier: Apache-2.0
// A Kubernetes API server for tests: lists in pages, watches, server-side apply, deletion, and failures on demand.
import { randomUUID } from "node:crypto";
import { createServer as createHttpServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { createServer as createHttpsServer } from "node:https";
import type { AddressInfo } from "node:net";
import { isJsonObject, parseJson, stringifyJson } from "@dynamo-ts/protocols/internal";

type KubeValue = Record<string, unknown>;
type EventType = "ADDED" | "MODIFIED" | "DELETED";

interface LogEntry {
	readonly resourceVersion: number;
	readonly type: EventType;
	readonly object: KubeValue;
}

interface WatchStream {
	readonly collection: string;
	readonly selector: string | null;
	readonly response: ServerResponse;
}

/** A request as it came. */
export interface KubeRequestLog {
	readonly method: string;
	readonly url: string;
	readonly headers: Readonly<Record<string, string | string[] | undefined>>;
	readonly body: unknown;
}

export interface FakeKubeApiOptions {
	/** Objects per page of a list, whatever the client asks for; default: as it asks. */
	readonly pageSize?: number;
	/** PEM text of certificate and key: then it speaks HTTPS. */
	readonly tls?: { cert: string; key: string };
	/** Requests must bear this token. */
	readonly token?: string;
}

const SLICES = "/apis/discovery.k8s.io/v1/namespaces/{ns}/endpointslices";
const PODS = "/api/v1/namespaces/{ns}/pods";
const LABELS = { "nvidia.com/dynamo-discovery-enabled": "true", "nvidia.com/dynamo-discovery-backend": "kubernetes" };

/** Holds objects of any kind by the path of their collection; each change has a version and reaches the watches. */
export class FakeKubeApi {
	/** All requests so far. */
	readonly requests: KubeRequestLog[] = [];
	readonly #options: FakeKubeApiOptions;
	readonly #objects = new Map<string, Map<string, KubeValue>>();
	readonly #log = new Map<string, LogEntry[]>();
	readonly #watches = new Set<WatchStream>();
	readonly #failures: { match: RegExp; status: number; left: number }[] = [];
	#server: Server;
	#port = 0;
	#version = 1000;
	/** Watches from an older version are answered with 410. */
	#oldest = 0;

	private constructor(options: FakeKubeApiOptions) {
		this.#options = options;
		this.#server = this.#create();
	}

	static async start(options: FakeKubeApiOptions = {}): Promise<FakeKubeApi> {
		const api = new FakeKubeApi(options);
		await api.resume();
		return api;
	}

	get port(): number {
		return this.#port;
	}

	/** Address for a kubeconfig. */
	get url(): string {
		return `${this.#options.tls === undefined ? "http" : "https"}://127.0.0.1:${this.#port}`;
	}

	/** Text of a kubeconfig that leads here. */
	kubeconfig(): string {
		return `apiVersion: v1
kind: Config
current-context: test
contexts: [{name: test, context: {cluster: test, user: test}}]
clusters: [{name: test, cluster: {server: "${this.url}"}}]
users: [{name: test, user: ${this.#options.token === undefined ? "{}" : `{token: "${this.#options.token}"}`}}]
`;
	}

	/** Puts an object as the cluster's own controllers do. */
	put(collection: string, name: string, value: KubeValue): void {
		const objects = this.#collection(collection);
		const before = objects.get(name);
		const metadata = isJsonObject(value.metadata) ? value.metadata : {};
		const old = before !== undefined && isJsonObject(before.metadata) ? before.metadata : {};
		const object = {
			...value,
			metadata: {
				...metadata,
				name,
				uid: metadata.uid ?? old.uid ?? randomUUID(),
				resourceVersion: String(++this.#version),
			},
		};
		objects.set(name, object);
		this.#tell(collection, before === undefined ? "ADDED" : "MODIFIED", object);
	}

	/** @returns false when there was none. */
	remove(collection: string, name: string): boolean {
		const objects = this.#collection(collection);
		const object = objects.get(name);
		if (object === undefined) return false;
		objects.delete(name);
		const metadata = { ...(object.metadata as KubeValue), resourceVersion: String(++this.#version) };
		this.#tell(collection, "DELETED", { ...object, metadata });
		return true;
	}

	/** An object as it is now. */
	get(collection: string, name: string): KubeValue | undefined {
		return this.#collection(collection).get(name);
	}

	/** Makes an EndpointSlice say that pods are ready or not; the slice is named after the first pod. */
	setSlice(
		namespace: string,
		pods: readonly { name: string; uid: string; ready?: boolean | null }[],
		name?: string,
	): void {
		this.put(SLICES.replace("{ns}", namespace), name ?? `${pods[0]?.name}-slice`, {
			apiVersion: "discovery.k8s.io/v1",
			kind: "EndpointSlice",
			metadata: { namespace, labels: LABELS },
			addressType: "IPv4",
			endpoints: pods.map((pod) => ({
				addresses: ["10.0.0.7"],
				conditions: { ready: pod.ready, serving: true, terminating: false },
				targetRef: { kind: "Pod", namespace, name: pod.name, uid: pod.uid },
			})),
			ports: [{ name: "system", port: 9090, protocol: "TCP" }],
		});
	}

	removeSlice(namespace: string, name: string): void {
		this.remove(SLICES.replace("{ns}", namespace), name);
	}

	/** Makes a Pod whose containers are ready or not. */
	setPod(namespace: string, name: string, uid: string, containers: Readonly<Record<string, boolean>>): void {
		this.put(PODS.replace("{ns}", namespace), name, {
			apiVersion: "v1",
			kind: "Pod",
			metadata: { namespace, uid, labels: LABELS },
			status: {
				phase: "Running",
				containerStatuses: Object.entries(containers).map(([container, ready]) => ({ name: container, ready })),
			},
		});
	}

	/** The next `times` requests whose `METHOD url` matches are answered with a status. */
	fail(match: RegExp, status: number, times = 1): void {
		this.#failures.push({ match, status, left: times });
	}

	/** Ends the watches of collections that match: cleanly, or by cutting their connections. */
	dropWatches(how: "end" | "cut" = "end", match = /./): void {
		for (const watch of [...this.#watches]) {
			if (!match.test(watch.collection)) continue;
			this.#watches.delete(watch);
			if (how === "end") watch.response.end();
			else watch.response.destroy();
		}
	}

	/** Forgets the past: running watches get an error event with code 410, and older versions are refused from now on. */
	expire(): void {
		this.#oldest = ++this.#version;
		const event = { type: "ERROR", object: { kind: "Status", code: 410, reason: "Expired", message: "too old" } };
		for (const watch of [...this.#watches]) watch.response.write(`${stringifyJson(event)}\n`);
		this.dropWatches();
	}

	/** Moves running watches on to the present version. */
	bookmark(): void {
		for (const watch of this.#watches) {
			const object = { metadata: { resourceVersion: String(this.#version) } };
			watch.response.write(`${stringifyJson({ type: "BOOKMARK", object })}\n`);
		}
	}

	/** Watches that are open now. */
	get watching(): number {
		return this.#watches.size;
	}

	/** Stops listening and cuts all connections; the objects stay. */
	async suspend(): Promise<void> {
		this.#watches.clear();
		const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
		this.#server.closeAllConnections();
		await closed;
	}

	/** Listens again, on the same port. */
	async resume(): Promise<void> {
		this.#server = this.#create();
		await new Promise<void>((resolve, reject) => {
			this.#server.once("error", reject);
			this.#server.listen(this.#port, "127.0.0.1", resolve);
		});
		this.#port = (this.#server.address() as AddressInfo).port;
	}

	#create(): Server {
		const serve = (request: IncomingMessage, response: ServerResponse): void => {
			this.#serve(request, response).catch((error: Error) => answer(response, 500, statusBody(500, error.message)));
		};
		const { tls } = this.#options;
		return tls === undefined ? createHttpServer(serve) : createHttpsServer(tls, serve);
	}

	async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
		const chunks: Buffer[] = [];
		for await (const chunk of request) chunks.push(chunk);
		const text = Buffer.concat(chunks).toString();
		const { method = "GET", url = "/", headers } = request;
		const body = text === "" ? undefined : parseJson(text);
		this.requests.push({ method, url, headers, body });
		const failure = this.#failures.find(({ match, left }) => left > 0 && match.test(`${method} ${url}`));
		if (failure !== undefined) {
			failure.left--;
			return answer(response, failure.status, statusBody(failure.status, "as the test wants it"));
		}
		const { token } = this.#options;
		if (token !== undefined && headers.authorization !== `Bearer ${token}`) {
			return answer(response, 401, statusBody(401, "Unauthorized"));
		}
		const { pathname, searchParams } = new URL(url, "http://api");
		const parts = /^(\/(?:api\/v1|apis\/[^/]+\/[^/]+)\/namespaces\/[^/]+\/[^/]+)(?:\/([^/]+))?$/.exec(pathname);
		const collection = parts?.[1];
		if (collection === undefined) return answer(response, 404, statusBody(404, "no such path"));
		const name = parts?.[2];
		if (method === "PATCH" && name !== undefined) return this.#apply(collection, name, headers, body, response);
		if (method === "DELETE" && name !== undefined) {
			const found = this.remove(collection, name);
			return answer(response, found ? 200 : 404, statusBody(found ? 200 : 404, found ? "" : `${name} not found`));
		}
		if (method === "GET" && searchParams.get("watch") === "true")
			return this.#watch(collection, searchParams, response);
		if (method === "GET" && name === undefined) return this.#list(collection, searchParams, response);
		const object = name === undefined ? undefined : this.get(collection, name);
		answer(response, object === undefined ? 404 : 200, object ?? statusBody(404, "not found"));
	}

	/** Server-side apply by one manager: what it does not name any more goes. */
	#apply(
		collection: string,
		name: string,
		headers: IncomingMessage["headers"],
		body: unknown,
		response: ServerResponse,
	): void {
		if (headers["content-type"] !== "application/apply-patch+yaml") {
			answer(response, 415, statusBody(415, "not an apply patch"));
			return;
		}
		if (!isJsonObject(body) || !isJsonObject(body.metadata) || body.metadata.name !== name) {
			answer(response, 422, statusBody(422, "the object has another name"));
			return;
		}
		const created = this.get(collection, name) === undefined;
		this.put(collection, name, body);
		answer(response, created ? 201 : 200, this.get(collection, name));
	}

	#list(collection: string, query: URLSearchParams, response: ServerResponse): void {
		const selector = query.get("labelSelector");
		const all = [...this.#collection(collection).values()].filter((object) => selects(selector, object));
		const from = Number(query.get("continue") ?? 0);
		const size = this.#options.pageSize ?? Number(query.get("limit") ?? all.length);
		const more = from + size < all.length ? { continue: String(from + size) } : {};
		const metadata = { resourceVersion: String(this.#version), ...more };
		answer(response, 200, { kind: "List", apiVersion: "v1", metadata, items: all.slice(from, from + size) });
	}

	#watch(collection: string, query: URLSearchParams, response: ServerResponse): void {
		const since = Number(query.get("resourceVersion") ?? 0);
		response.writeHead(200, { "content-type": "application/json" });
		response.flushHeaders();
		if (since < this.#oldest) {
			response.end(`${stringifyJson({ type: "ERROR", object: statusBody(410, "too old resource version") })}\n`);
			return;
		}
		const watch: WatchStream = { collection, selector: query.get("labelSelector"), response };
		for (const entry of this.#log.get(collection) ?? []) {
			if (entry.resourceVersion > since) this.#send(watch, entry.type, entry.object);
		}
		this.#watches.add(watch);
		response.on("close", () => this.#watches.delete(watch));
	}

	#tell(collection: string, type: EventType, object: KubeValue): void {
		const log = this.#log.get(collection) ?? [];
		log.push({ resourceVersion: this.#version, type, object });
		this.#log.set(collection, log);
		for (const watch of this.#watches) if (watch.collection === collection) this.#send(watch, type, object);
	}

	#send({ response, selector }: WatchStream, type: EventType, object: KubeValue): void {
		if (selects(selector, object)) response.write(`${stringifyJson({ type, object })}\n`);
	}

	#collection(path: string): Map<string, KubeValue> {
		let objects = this.#objects.get(path);
		if (objects === undefined) {
			objects = new Map();
			this.#objects.set(path, objects);
		}
		return objects;
	}
}

function selects(selector: string | null, object: KubeValue): boolean {
	if (selector === null) return true;
	const labels = isJsonObject(object.metadata) && isJsonObject(object.metadata.labels) ? object.metadata.labels : {};
	return selector.split(",").every((term) => {
		const [name, value] = term.split("=");
		return labels[name as string] === value;
	});
}

function statusBody(code: number, message: string): KubeValue {
	return { kind: "Status", apiVersion: "v1", status: code < 300 ? "Success" : "Failure", message, code };
}

function answer(response: ServerResponse, status: number, body: unknown): void {
	response.writeHead(status, { "content-type": "application/json" });
	response.end(stringifyJson(body));
}
