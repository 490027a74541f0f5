// SPDX-License-Identifier: Apache-2.0
// Discovery through the Kubernetes API: one custom resource per process, visible while its pod is ready.
import { type Bucket, type DiscoveryRecord, DynamoError, recordKey } from "@dynamo-ts/protocols/internal";
import type { Logger } from "../../observability/logging.js";
import { ConnectionReport, errorText } from "../connection-report.js";
import type { Discovery, DiscoveryEvent, Watch } from "../discovery.js";
import { kubernetesInstanceId } from "./instance-id.js";
import { kubeAccess } from "./kube-access.js";
import { KubeClient } from "./kube-client.js";
import { type KubeIdentity, type KubernetesConfig, kubeIdentity } from "./kube-config.js";
import { KubeJoin } from "./kube-join.js";
import { KubeReflector } from "./kube-reflector.js";
import { KubeWriter } from "./kube-writer.js";
import { readyInPod, readyInSlice } from "./ready-pods.js";
import { WORKER_METADATA } from "./worker-metadata.js";

export interface KubernetesDiscoveryOptions {
	readonly config: KubernetesConfig;
	readonly log: Logger;
}

/** What slices and pods of workers carry. */
const SELECTOR = "nvidia.com/dynamo-discovery-enabled=true";
/** Longest wait for the first listings. */
const SYNC_TIMEOUT_MS = 30_000;

/**
 * Discovery through the Kubernetes API. There is no lease: a worker's records stay in its custom resource, and count as
 * long as the cluster calls its pod (or container) ready. While the API is away the last known state stays in force.
 */
export class KubernetesDiscovery implements Discovery {
	readonly backend = "kubernetes";
	readonly instanceId: bigint;
	readonly #log: Logger;
	readonly #client: KubeClient;
	readonly #writer: KubeWriter;
	readonly #join: KubeJoin;
	readonly #reflectors: readonly KubeReflector[];
	readonly #synced: Promise<void>;
	#closed: Promise<void> | undefined;

	private constructor(
		log: Logger,
		client: KubeClient,
		identity: KubeIdentity,
		writer: KubeWriter,
		report: ConnectionReport,
	) {
		const { namespace, mode, resourceName } = identity;
		this.instanceId = kubernetesInstanceId(resourceName);
		this.#log = log;
		this.#client = client;
		this.#writer = writer;
		this.#join = new KubeJoin(log);
		const join = this.#join;
		const common = { client, report };
		const { group, version, plural } = WORKER_METADATA;
		const synced: Promise<void>[] = [];
		const onSynced = (): (() => void) => {
			let resolve = (): void => {};
			synced.push(
				new Promise((done) => {
					resolve = done;
				}),
			);
			return resolve;
		};
		const readyPath =
			mode === "pod"
				? `/apis/discovery.k8s.io/v1/namespaces/${namespace}/endpointslices`
				: `/api/v1/namespaces/${namespace}/pods`;
		const read = mode === "pod" ? readyInSlice : readyInPod;
		this.#reflectors = [
			new KubeReflector({
				...common,
				path: readyPath,
				labelSelector: SELECTOR,
				onObject: ({ name, value }) => join.setReady(name, read(value)),
				onGone: (name) => join.setReady(name, []),
				onSynced: onSynced(),
			}),
			new KubeReflector({
				...common,
				path: `/apis/${group}/${version}/namespaces/${namespace}/${plural}`,
				onObject: ({ name, value }) => join.setResource(name, value),
				onGone: (name) => {
					join.removeResource(name);
					if (name === resourceName) writer.restore();
				},
				onSynced: onSynced(),
			}),
		];
		this.#synced = Promise.all(synced).then(() => {});
	}

	/**
	 * Finds out who this process is and how the API is reached; begins to list and watch. In container mode what an
	 * earlier life of the container left is removed first.
	 * @throws DynamoError `InvalidArgument` when the pod's name or uid is not known, `Unavailable` when there is no way to
	 * the API or it refuses us.
	 */
	static async open({ config, log }: KubernetesDiscoveryOptions): Promise<KubernetesDiscovery> {
		const identity = await kubeIdentity(config, () =>
			log.warn("POD_NAMESPACE is not set: the Kubernetes namespace default is taken"),
		);
		const client = new KubeClient(await kubeAccess(config));
		const report = new ConnectionReport(log, `the Kubernetes API at ${client.server}`);
		const writer = new KubeWriter(client, identity, report);
		try {
			if (identity.mode === "container") await writer.removeOld();
		} catch (error) {
			client.close();
			throw error;
		}
		return new KubernetesDiscovery(log, client, identity, writer, report);
	}

	async put(record: DiscoveryRecord): Promise<void> {
		this.#refuseWhenClosed();
		if (record.type === "EventChannel" && record.instance_id >= 1n << 53n) {
			throw new DynamoError(
				"InvalidArgument",
				`publisher id ${record.instance_id} is too large for kubernetes discovery: it must be below 2^53`,
			);
		}
		await this.#writer.put(structuredClone(record));
	}

	async delete(record: DiscoveryRecord): Promise<void> {
		if (!this.#writer.has(recordKey(record))) return;
		await this.#writer.delete(recordKey(record)).catch((error: unknown) => this.#notWritten(error));
	}

	async deleteOwn(): Promise<void> {
		if (this.#writer.empty) return;
		await this.#writer.clear().catch((error: unknown) => this.#notWritten(error));
	}

	async list(bucket: Bucket): Promise<DiscoveryRecord[]> {
		await this.#whenSynced();
		return this.#join.views.get(bucket)?.records() ?? [];
	}

	async watch(bucket: Bucket, onEvent: (event: DiscoveryEvent) => void): Promise<Watch> {
		await this.#whenSynced();
		const view = this.#join.views.get(bucket);
		if (view === undefined) throw new DynamoError("InvalidArgument", `there is no bucket ${bucket}`);
		return view.watch(onEvent);
	}

	close(): Promise<void> {
		this.#closed ??= this.#leave();
		return this.#closed;
	}

	async #leave(): Promise<void> {
		for (const reflector of this.#reflectors) reflector.close();
		this.#join.close();
		this.#writer.close();
		await this.deleteOwn();
		this.#client.close();
	}

	async #whenSynced(): Promise<void> {
		this.#refuseWhenClosed();
		let timer: NodeJS.Timeout | undefined;
		const late = new Promise<never>((_, reject) => {
			timer = setTimeout(() => {
				const text = `the Kubernetes API at ${this.#client.server} was not listed within ${SYNC_TIMEOUT_MS} ms`;
				reject(new DynamoError("Unavailable", text, { publicMessage: text }));
			}, SYNC_TIMEOUT_MS);
		});
		try {
			await Promise.race([this.#synced, late]);
		} finally {
			clearTimeout(timer);
		}
		this.#refuseWhenClosed();
	}

	#notWritten(error: unknown): void {
		this.#log.warn(
			"records could not be taken out of the custom resource; that is tried again, or they go with the pod",
			{
				error: errorText(error),
			},
		);
	}

	#refuseWhenClosed(): void {
		if (this.#closed !== undefined) throw new DynamoError("Unavailable", "discovery is closed");
	}
}
