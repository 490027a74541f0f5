// SPDX-License-Identifier: Apache-2.0
// Keeps a picture of one kind of objects in a namespace: listed once, then followed for ever.
import { isJsonObject } from "@dynamo-ts/protocols/internal";
import { Backoff, Pause } from "../backoff.js";
import type { ConnectionReport } from "../connection-report.js";
import { errorText } from "../connection-report.js";
import { type KubeClient, KubeStatusError } from "./kube-client.js";

const LIST_TIMEOUT_MS = 30_000;
const PAGE_OBJECTS = 500;
/** The server ends a watch after this; a longer silence means that the connection is dead. */
const WATCH_SECONDS = 290;
const WATCH_IDLE_MS = (WATCH_SECONDS + 15) * 1000;
const RETRY_MS = { first: 800, max: 30_000 } as const;
/** Watches that end sooner than this are not opened again at once. */
const SHORT_WATCH_MS = 500;

/** An object of the API, as much of it as is looked at. */
export interface KubeObject {
	readonly name: string;
	readonly value: Readonly<Record<string, unknown>>;
}

export interface KubeReflectorOptions {
	readonly client: KubeClient;
	/** `/apis/{group}/{version}/namespaces/{namespace}/{plural}`. */
	readonly path: string;
	readonly labelSelector?: string;
	readonly report: ConnectionReport;
	/** An object is there, or is another now. */
	readonly onObject: (object: KubeObject) => void;
	readonly onGone: (name: string) => void;
	/** The first listing is complete. */
	readonly onSynced: () => void;
}

/**
 * Lists and watches as Dynamo's client does: a watch that ends is opened again from where it was; one whose past is gone
 * (410) leads to a new listing; errors lead to another try with growing waits. Meanwhile the last picture stays.
 */
export class KubeReflector {
	readonly #options: KubeReflectorOptions;
	readonly #names = new Set<string>();
	readonly #pause = new Pause();
	readonly #backoff = new Backoff(RETRY_MS.first, RETRY_MS.max);
	#resourceVersion: string | undefined;
	#synced = false;
	#closed = false;

	constructor(options: KubeReflectorOptions) {
		this.#options = options;
		void this.#run();
	}

	close(): void {
		this.#closed = true;
		this.#pause.cutShort();
	}

	async #run(): Promise<void> {
		const { path, report } = this.#options;
		while (!this.#closed) {
			const started = performance.now();
			try {
				if (this.#resourceVersion === undefined) await this.#list();
				await this.#watch();
				if (performance.now() - started < SHORT_WATCH_MS) await this.#pause.wait(SHORT_WATCH_MS);
			} catch (error) {
				if (this.#closed) return;
				const gone = error instanceof KubeStatusError && error.status === 410;
				if (gone) this.#resourceVersion = undefined;
				else report.failed(`${this.#resourceVersion === undefined ? "listing" : "watching"} ${path}`, error);
				await this.#pause.wait(this.#backoff.next());
			}
		}
	}

	async #list(): Promise<void> {
		const { client, path, report, onObject, onGone, onSynced } = this.#options;
		const objects: KubeObject[] = [];
		let next: string | undefined;
		let resourceVersion: string;
		do {
			const query = { limit: String(PAGE_OBJECTS), ...(next === undefined ? {} : { continue: next }) };
			const answer = await client.send({ method: "GET", path: this.#url(query), timeoutMs: LIST_TIMEOUT_MS });
			const list = isJsonObject(answer) ? answer : {};
			const metadata = isJsonObject(list.metadata) ? list.metadata : {};
			for (const item of Array.isArray(list.items) ? list.items : []) {
				const object = objectOf(item);
				if (object !== undefined) objects.push(object);
			}
			if (metadata.resourceVersion === undefined) throw new Error(`${path} was listed without a resourceVersion`);
			resourceVersion = String(metadata.resourceVersion);
			next = typeof metadata.continue === "string" && metadata.continue !== "" ? metadata.continue : undefined;
		} while (next !== undefined);
		if (this.#closed) return;
		const present = new Set(objects.map(({ name }) => name));
		for (const name of [...this.#names]) {
			if (present.has(name)) continue;
			this.#names.delete(name);
			onGone(name);
		}
		for (const object of objects) {
			this.#names.add(object.name);
			onObject(object);
		}
		this.#resourceVersion = resourceVersion;
		report.succeeded();
		if (!this.#synced) onSynced();
		this.#synced = true;
	}

	async #watch(): Promise<void> {
		const url = this.#url({
			watch: "true",
			timeoutSeconds: String(WATCH_SECONDS),
			allowWatchBookmarks: "true",
			resourceVersion: this.#resourceVersion ?? "",
		});
		const onEvent = (event: unknown): boolean => {
			if (this.#closed) return false;
			this.#take(event);
			return true;
		};
		await this.#options.client.watch(url, WATCH_IDLE_MS, onEvent, () => this.#options.report.succeeded());
		this.#healthy();
	}

	#take(event: unknown): void {
		const { onObject, onGone } = this.#options;
		if (!isJsonObject(event) || !isJsonObject(event.object)) throw new Error("a watch event is not an object");
		if (event.type === "ERROR") {
			const { code, message } = event.object;
			throw new KubeStatusError(Number(code ?? 500), `the watch failed: ${errorText(message ?? "no reason given")}`);
		}
		const metadata = isJsonObject(event.object.metadata) ? event.object.metadata : {};
		if (metadata.resourceVersion !== undefined) this.#resourceVersion = String(metadata.resourceVersion);
		this.#healthy();
		if (event.type === "BOOKMARK") return;
		const object = objectOf(event.object);
		if (object === undefined) return;
		if (event.type === "DELETED") {
			if (this.#names.delete(object.name)) onGone(object.name);
		} else {
			this.#names.add(object.name);
			onObject(object);
		}
	}

	#healthy(): void {
		this.#backoff.reset();
		this.#options.report.succeeded();
	}

	#url(query: Record<string, string>): string {
		const { path, labelSelector } = this.#options;
		const all = { ...query, ...(labelSelector === undefined ? {} : { labelSelector }) };
		return `${path}?${new URLSearchParams(all)}`;
	}
}

function objectOf(value: unknown): KubeObject | undefined {
	if (!isJsonObject(value) || !isJsonObject(value.metadata)) return undefined;
	const { name } = value.metadata;
	return typeof name === "string" ? { name, value } : undefined;
}
