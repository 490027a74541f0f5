// SPDX-License-Identifier: Apache-2.0
// Writes this process' custom resource: the complete object with every change, one request at a time.
import { type DiscoveryRecord, DynamoError, recordKey } from "@dynamo-ts/protocols/internal";
import { Backoff, Pause } from "../backoff.js";
import { type ConnectionReport, errorText } from "../connection-report.js";
import { type KubeClient, KubeStatusError } from "./kube-client.js";
import type { KubeIdentity } from "./kube-config.js";
import { WORKER_METADATA, workerMetadataBody } from "./worker-metadata.js";

const CALL_TIMEOUT_MS = 10_000;
/** How long a change waits for an API server that is away. */
const PATIENCE_MS = 30_000;
/** The same for a removal, which is then made up for in the background: whoever leaves does not wait. */
const REMOVAL_PATIENCE_MS = 2000;
const RETRY_MS = { first: 200, max: 5000 } as const;
const FIELD_MANAGER = "dynamo-worker";

interface WriteRequest {
	readonly method: "PATCH" | "DELETE";
	readonly path: string;
	readonly body: string;
	readonly contentType: string;
	readonly patienceMs: number;
}

/** The resource of this process. A change that the API refuses is undone here, and its call fails. */
export class KubeWriter {
	readonly #client: KubeClient;
	readonly #identity: KubeIdentity;
	readonly #report: ConnectionReport;
	readonly #path: string;
	readonly #records = new Map<string, DiscoveryRecord>();
	readonly #pause = new Pause();
	readonly #laterPause = new Pause();
	/** Nothing of an earlier life of this pod is left in the resource. */
	#clean = false;
	#queue: Promise<void> = Promise.resolve();
	#closing = false;
	#writingLater = false;

	constructor(client: KubeClient, identity: KubeIdentity, report: ConnectionReport) {
		this.#client = client;
		this.#identity = identity;
		this.#report = report;
		const { group, version, plural } = WORKER_METADATA;
		this.#path = `/apis/${group}/${version}/namespaces/${identity.namespace}/${plural}/${identity.resourceName}`;
	}

	/** Removes what an earlier life of this container left. @throws DynamoError `Unavailable`. */
	async removeOld(): Promise<void> {
		await this.#enqueue(async () => {
			await this.#send(
				{ method: "DELETE", path: this.#path, body: "{}", contentType: "application/json", patienceMs: PATIENCE_MS },
				404,
			);
			this.#clean = true;
		});
	}

	/** @throws DynamoError `Unavailable` when the API refuses it or cannot be reached for a long time. */
	async put(record: DiscoveryRecord): Promise<void> {
		const key = recordKey(record);
		// A card of an earlier life under this name would make readers refuse ours: an empty object goes first.
		if (!this.#clean) await this.#enqueue(() => this.#apply());
		await this.#change(() => {
			const before = this.#records.get(key);
			this.#records.set(key, record);
			return () => (before === undefined ? this.#records.delete(key) : this.#records.set(key, before));
		});
	}

	async delete(key: string): Promise<void> {
		await this.#change(() => {
			this.#records.delete(key);
			return undefined;
		});
	}

	/** Takes all records away. The object itself stays: it goes with its pod. */
	async clear(): Promise<void> {
		await this.#change(() => {
			this.#records.clear();
			return undefined;
		});
	}

	/** The resource is gone or lost content though this process has records: it is written again. */
	restore(): void {
		if (this.#records.size === 0 || this.#closing) return;
		this.#enqueue(async () => {
			if (this.#records.size > 0) await this.#apply();
		}).catch((error: unknown) => this.#report.failed("writing the records again", error));
	}

	has(key: string): boolean {
		return this.#records.has(key);
	}

	/** Whether this process has nothing in its resource. */
	get empty(): boolean {
		return this.#records.size === 0;
	}

	/** From now on nothing is tried twice. */
	close(): void {
		this.#closing = true;
		this.#pause.cutShort();
		this.#laterPause.cutShort();
	}

	/** Makes a change and writes it; `undo` takes it back if that fails. Without one, it stands and is written later. */
	#change(make: () => (() => void) | undefined): Promise<void> {
		return this.#enqueue(async () => {
			const undo = make();
			try {
				await this.#apply(undo === undefined ? REMOVAL_PATIENCE_MS : PATIENCE_MS);
			} catch (error) {
				if (undo === undefined) void this.#writeLater();
				else undo();
				throw error;
			}
		});
	}

	async #writeLater(): Promise<void> {
		if (this.#writingLater) return;
		this.#writingLater = true;
		const backoff = new Backoff(RETRY_MS.first, RETRY_MS.max);
		while (this.#writingLater && !this.#closing) {
			await this.#laterPause.wait(backoff.next());
			await this.#enqueue(async () => {
				if (this.#closing) return;
				await this.#apply(0);
				this.#writingLater = false;
			}).catch(() => {});
		}
	}

	async #apply(patienceMs = PATIENCE_MS): Promise<void> {
		const query = new URLSearchParams({ force: "true", fieldManager: FIELD_MANAGER });
		await this.#send({
			method: "PATCH",
			path: `${this.#path}?${query}`,
			body: workerMetadataBody(this.#identity, this.#records),
			contentType: "application/apply-patch+yaml",
			patienceMs,
		});
		this.#clean = true;
	}

	async #send({ patienceMs, ...request }: WriteRequest, fine?: number): Promise<void> {
		const backoff = new Backoff(RETRY_MS.first, RETRY_MS.max);
		const deadline = performance.now() + patienceMs;
		for (;;) {
			try {
				await this.#client.send({
					...request,
					timeoutMs: patienceMs < CALL_TIMEOUT_MS ? REMOVAL_PATIENCE_MS : CALL_TIMEOUT_MS,
				});
				this.#report.succeeded();
				return;
			} catch (error) {
				const status = error instanceof KubeStatusError ? error.status : undefined;
				if (status !== undefined && status === fine) return;
				const later = !(error instanceof KubeStatusError) || error.transient;
				if (later) this.#report.failed(`${request.method} ${this.#path}`, error);
				if (!later || this.#closing || performance.now() > deadline) {
					const text = `${request.method} ${this.#path} failed: ${errorText(error)}${advice(status)}`;
					throw new DynamoError("Unavailable", text, { cause: error, publicMessage: text });
				}
			}
			await this.#pause.wait(backoff.next());
		}
	}

	#enqueue(work: () => Promise<void>): Promise<void> {
		const done = this.#queue.then(work);
		this.#queue = done.catch(() => {});
		return done;
	}
}

function advice(status: number | undefined): string {
	const { group, plural } = WORKER_METADATA;
	if (status === 401 || status === 403) {
		return ` (the service account needs create, get, list, watch, update, patch and delete on ${plural}.${group})`;
	}
	return status === 404 ? ` (is the custom resource definition ${plural}.${group} installed?)` : "";
}
