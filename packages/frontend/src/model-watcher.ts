// SPDX-License-Identifier: Apache-2.0
import {
	type DiscoveryRecord,
	type EndpointId,
	type EndpointRecord,
	type ModelDeploymentCard,
	type ModelRecord,
	mdcsum,
	parseModelType,
	stringifyJson,
} from "@dynamo-ts/protocols/internal";
import {
	type BusyThresholds,
	createRouter,
	type GroupPlace,
	KvPolicy,
	type KvRouterOptions,
	kvWorkersOf,
	LoadMonitor,
	type RouterMetrics,
	type RouterMode,
	type RouterPolicyConfig,
	RoutingGroup,
	SessionAffinity,
	type SessionAffinityOptions,
} from "@dynamo-ts/router";
import { type IndexOwner, routingOfCard, ServedIndexers } from "@dynamo-ts/router/internal";
import type { DiscoveryEvent, DistributedRuntime, EndpointClient, Logger, Watch } from "@dynamo-ts/runtime";
import { parseConditionalDisagg } from "./conditional-disagg.js";
import type { ModelFiles } from "./model-files.js";
import type { ModelManager } from "./model-manager.js";
import { loadMaterials } from "./model-materials.js";
import { WorkerGroup } from "./worker-group.js";
import { type RoutingWish, WorkerSet, workerSetKey } from "./worker-set.js";

export interface ModelWatcherOptions {
	/** Only this namespace; undefined: all. */
	readonly namespace: string | undefined;
	/** Only namespaces that start so; wins over `namespace`. */
	readonly namespacePrefix: string | undefined;
	readonly routerMode: RouterMode;
	readonly kvRouter?: KvRouterOptions;
	/** Classes of requests that wait for their turn, by model. */
	readonly policyConfig?: RouterPolicyConfig | undefined;
	/** A model is there once it has so many workers; default 0. */
	readonly minInitialWorkers?: number | undefined;
	/** Absent: sessions are not kept together. */
	readonly sessionAffinity?: SessionAffinityOptions | undefined;
	/** Counts what routers do; absent: nobody looks. */
	readonly routerMetrics?: RouterMetrics | undefined;
	/** Workers above them get no more. */
	readonly busy?: BusyThresholds;
	/** An instance left discovery. */
	readonly onWorkerGone?: (instanceId: bigint) => void;
	/** First and longest wait between attempts to load a model's files, milliseconds. */
	readonly retryMinMs?: number;
	readonly retryMaxMs?: number;
}

/** A model record that was seen, and what became of it. */
interface KnownRecord {
	readonly record: ModelRecord;
	readonly sum: string;
	/** The set that accepted it; undefined: its card differs from the one that came first. */
	set: WorkerSet | undefined;
}

/**
 * Keeps the {@link ModelManager} in step with discovery. Records are grouped into worker sets; the first card of a set
 * decides, records with another sum wait aside until the set is gone. A set counts once its files are loaded, which is
 * retried for as long as it is there.
 */
export class ModelWatcher {
	private readonly runtime: DistributedRuntime;
	private readonly manager: ModelManager;
	private readonly files: ModelFiles;
	private readonly options: ModelWatcherOptions;
	private readonly log: Logger;
	private readonly records = new Map<string, KnownRecord>();
	private readonly sets = new Map<string, WorkerSet>();
	private readonly groups = new Map<string, WorkerGroup>();
	private readonly endpoints = new Map<string, EndpointRecord>();
	private readonly watches: Watch[] = [];
	private readonly indexers: ServedIndexers;
	/** Sets whose index others can ask. */
	private readonly owners = new Map<WorkerSet, IndexOwner>();
	private closed = false;

	constructor(runtime: DistributedRuntime, manager: ModelManager, files: ModelFiles, options: ModelWatcherOptions) {
		this.runtime = runtime;
		this.manager = manager;
		this.files = files;
		this.options = options;
		this.log = runtime.log.child("dynamo_llm::discovery::watcher");
		this.indexers = new ServedIndexers(runtime);
	}

	/** Resolves when the records that are there now were seen. Their files may still be on the way. */
	async start(): Promise<void> {
		this.watches.push(
			await this.runtime.discovery.watch("v1/instances", (event) => this.onInstance(event)),
			await this.runtime.discovery.watch("v1/mdc", (event) => this.onModel(event)),
		);
		if (this.closed) for (const watch of this.watches.splice(0)) watch.close();
	}

	/** All endpoint instances in discovery, of any component. */
	instances(): EndpointRecord[] {
		return [...this.endpoints.values()];
	}

	/** All worker sets, whether their files are loaded or not. */
	workerSets(): WorkerSet[] {
		return [...this.sets.values()];
	}

	/** Instances that were left aside because their card differs from that of the workers that came first. */
	refused(): bigint[] {
		return [...this.records.values()].filter(({ set }) => set === undefined).map(({ record }) => record.instance_id);
	}

	close(): void {
		this.closed = true;
		for (const watch of this.watches.splice(0)) watch.close();
		for (const set of this.sets.values()) {
			this.manager.removeSet(set);
			set.close();
		}
		void this.indexers.close();
		this.owners.clear();
		this.sets.clear();
		this.groups.clear();
		this.records.clear();
		this.endpoints.clear();
	}

	private onInstance(event: DiscoveryEvent): void {
		if (event.type === "delete") {
			const record = this.endpoints.get(event.key);
			this.endpoints.delete(event.key);
			if (record !== undefined) this.options.onWorkerGone?.(record.instance_id);
		} else if (event.record.type === "Endpoint") this.endpoints.set(event.key, event.record);
	}

	private onModel(event: DiscoveryEvent): void {
		if (this.closed) return;
		if (event.type === "delete") this.forget(event.key);
		else if (isModel(event.record) && this.wanted(event.record)) this.take(event.key, event.record);
	}

	/** Whether a record is of a namespace that this frontend serves. */
	wanted(record: ModelRecord): boolean {
		const { namespace, namespacePrefix } = this.options;
		if (namespacePrefix !== undefined) return record.namespace.startsWith(namespacePrefix);
		return namespace === undefined || record.namespace === namespace;
	}

	private take(key: string, record: ModelRecord): void {
		const known = this.records.get(key);
		if (known !== undefined) {
			if (sameCard(known.record, record)) {
				known.set?.renew(record.instance_id, record.card_json);
				return;
			}
			this.log.warn("Rejecting immutable discovery model-card mutation", {
				key,
				model: known.record.card_json.display_name,
			});
			return;
		}
		const entry: KnownRecord = { record, sum: mdcsum(record.card_json), set: undefined };
		this.records.set(key, entry);
		this.place(key, entry);
	}

	/** Puts a record into its set, or leaves it aside when the set has another card. */
	private place(key: string, entry: KnownRecord): void {
		const { record } = entry;
		const setKey = workerSetKey(record);
		let set = this.sets.get(setKey);
		if (set !== undefined && set.sum !== entry.sum) {
			this.log.warn(
				"Rejected incompatible workers; the first accepted configuration retains the WorkerSet. " +
					"Give the workers the same card, or stop the others first",
				{
					model: set.name,
					instance_id: record.instance_id,
					accepted_mdcsum: set.sum,
					rejected_mdcsum: entry.sum,
				},
			);
			return;
		}
		if (set === undefined) {
			const group = this.groupOf(record);
			const wish = this.wishOf(record.card_json, group);
			set = new WorkerSet(record, this.createRouting(record.card_json, wish), group, wish);
			this.options.routerMetrics?.add(set.router, placeOf(set));
			this.sets.set(setKey, set);
			this.manager.addSet(set);
			this.materialise(set).catch((error: unknown) => this.log.error("Model watcher failed", { error: String(error) }));
		}
		entry.set = set;
		set.add(record.instance_id, key, record.card_json);
		this.manager.refresh(set);
		if (set.answers) this.takeAfter(set.group);
	}

	/** What the workers' card says about routing, or, of prefill workers that say nothing, the card of those that answer. */
	private wishOf(card: ModelDeploymentCard, group: WorkerGroup): RoutingWish | undefined {
		const source: unknown = card.router_config ?? undefined;
		if (source === undefined) return card.worker_type === "prefill" ? group.answeringSet()?.wish : undefined;
		try {
			const routing = routingOfCard(source);
			const { conditionalDisagg } = routing;
			const conditional =
				conditionalDisagg && parseConditionalDisagg(JSON.stringify(conditionalDisagg), "router_config");
			return { source, routing, conditional };
		} catch (error) {
			this.log.warn("A model card's routing settings cannot be used; those of the frontend hold", {
				model: card.display_name,
				error: (error as Error).message,
			});
			return undefined;
		}
	}

	/** Prefill workers that say nothing about routing get what those that answer have by now. */
	private takeAfter(group: WorkerGroup): void {
		const home = group.answeringSet();
		if (home === undefined) return;
		const wanted = stringifyJson(home.wish?.source ?? null);
		for (const set of [...group.sets]) {
			if (set.workerType !== "prefill" || (set.card.router_config ?? undefined) !== undefined) continue;
			if (stringifyJson(set.wish?.source ?? null) === wanted) continue;
			const members = [...this.records].filter(([, known]) => known.set === set);
			this.drop(set);
			for (const [key, entry] of members) this.place(key, entry);
		}
	}

	private createRouting(card: ModelDeploymentCard, wish: RoutingWish | undefined): RoutingGroup {
		const own = wish?.routing;
		const workers = kvWorkersOf(card);
		const { firstRank, rankCount } = workers;
		const load = new LoadMonitor({
			// Limits that were set while running hold for the workers that follow.
			thresholds: own?.busy ?? this.manager.find(card.display_name)?.busyThresholds() ?? this.options.busy ?? {},
			totalKvBlocks: card.runtime_config?.total_kv_blocks ?? undefined,
			maxNumBatchedTokens: card.runtime_config?.max_num_batched_tokens ?? undefined,
			firstRank,
			rankCount,
		});
		const { kvRouter, policyConfig } = this.options;
		const { mode = this.options.routerMode } = own ?? {};
		const sessionAffinity = own === undefined ? this.options.sessionAffinity : own.sessionAffinity;
		const profile = policyConfig?.profileOf(card.display_name);
		const options: Partial<KvRouterOptions> = {
			...(own === undefined ? kvRouter : { ...own.kv, ...settingsWithoutCard(kvRouter) }),
			...(profile === undefined ? {} : { profile }),
			// A prefill worker has a prompt's blocks only until they are handed over, so that its backlog is all its load.
			...(card.worker_type === "prefill" ? { trackActiveBlocks: false } : {}),
		};
		const policy = createRouter(mode, { workers, options });
		const affinity = sessionAffinity === undefined ? undefined : new SessionAffinity(sessionAffinity);
		return new RoutingGroup({ model: card.display_name, policy, load, affinity, firstRank, rankCount });
	}

	/** Workers' load is needed when there is a limit; without one it is only listened to, in case that one is set. */
	private async watchLoad(load: LoadMonitor, endpoint: EndpointId): Promise<void> {
		const opened = load.open(this.runtime, endpoint);
		if (load.limited) return opened;
		opened.catch((error: Error) => this.log.warn("Workers' load cannot be listened to", { error: error.message }));
	}

	/** @throws Error when the index cannot be served now; is called again then. */
	private async serveIndex(set: WorkerSet, workers: EndpointId): Promise<void> {
		const { policy } = set.router;
		if (!(policy instanceof KvPolicy) || !policy.servesIndex || set.closing.signal.aborted) return;
		const owner: IndexOwner = this.owners.get(set) ?? {
			modelNames: () => new Set(set.publicNames),
			policy: () => Promise.resolve(policy),
			isMember: (workerId) => set.member(workerId) !== undefined,
			canRecord: policy.assumes,
		};
		this.owners.set(set, owner);
		await this.indexers.add(workers, owner);
	}

	private groupOf(record: ModelRecord): WorkerGroup {
		const key = JSON.stringify([record.namespace, record.card_json.display_name]);
		let group = this.groups.get(key);
		if (group === undefined) {
			group = new WorkerGroup();
			this.groups.set(key, group);
		}
		return group;
	}

	private forget(key: string): void {
		const entry = this.records.get(key);
		if (entry === undefined) return;
		this.records.delete(key);
		const { set } = entry;
		if (set === undefined) return;
		set.remove(entry.record.instance_id, key);
		if (set.size > 0) {
			this.manager.refresh(set);
			return;
		}
		this.drop(set);
		if (set.group.sets.size === 0) this.dropGroup(set.group);
		this.log.info("Removed model group", { model: set.name, namespace: set.namespace, component: set.component });
		// Those that the departed card kept out may now come in.
		for (const [otherKey, other] of this.records) {
			if (other.set === undefined && workerSetKey(other.record) === set.key) this.place(otherKey, other);
		}
		if (set.answers) this.takeAfter(set.group);
	}

	private drop(set: WorkerSet): void {
		this.sets.delete(set.key);
		this.manager.removeSet(set);
		this.options.routerMetrics?.remove(set.router);
		set.close();
		const owner = this.owners.get(set);
		if (owner !== undefined) void this.indexers.remove({ ...set, name: set.endpoint }, owner);
		this.owners.delete(set);
	}

	private dropGroup(group: WorkerGroup): void {
		for (const [key, known] of this.groups) if (known === group) this.groups.delete(key);
	}

	/** Resolves when as many workers are there as are wanted at first, however long that takes, or when the set closes. */
	private async untilEnough(client: EndpointClient, { name: model, closing: { signal } }: WorkerSet): Promise<void> {
		const { minInitialWorkers: wanted = 0 } = this.options;
		if (client.instances().length >= wanted) return;
		this.log.info("Waiting for more workers", { model, workers: client.instances().length, wanted });
		await new Promise<void>((resolve) => {
			const look = (): void => {
				if (!signal.aborted && client.instances().length < wanted) return;
				stop();
				signal.removeEventListener("abort", look);
				resolve();
			};
			const stop = client.onChange(look);
			signal.addEventListener("abort", look);
			look();
		});
	}

	private async materialise(set: WorkerSet): Promise<void> {
		const { signal } = set.closing;
		const { retryMinMs = 250, retryMaxMs = 10_000 } = this.options;
		for (let attempt = 0; !signal.aborted; attempt++) {
			try {
				const materials = needsMaterials(set) ? await loadMaterials(set.card, this.files, signal) : undefined;
				if (signal.aborted) return;
				const endpoint = this.runtime.namespace(set.namespace).component(set.component).endpoint(set.endpoint);
				const { namespace, component } = set;
				const id = { namespace, component, name: set.endpoint };
				await set.router.open(this.runtime, id, (workerId) => set.member(workerId) !== undefined);
				if (set.load !== undefined) await this.watchLoad(set.load, id);
				await this.serveIndex(set, id);
				const client = await endpoint.client();
				await this.untilEnough(client, set);
				if (signal.aborted) {
					client.close();
					return;
				}
				set.commit({ client, materials });
				client.onChange(() => {
					this.manager.refresh(set);
					set.router.recheck();
				});
				this.manager.committed(set);
				this.log.info("Committed discovered model group", {
					model: set.name,
					namespace: set.namespace,
					component: set.component,
					endpoint: set.endpoint,
					mdcsum: set.sum,
				});
				if (materials?.chatProblem !== undefined && set.modelTypes.has("Chat")) {
					this.log.warn(`Chat requests of ${set.name} will be refused: ${materials.chatProblem.message}`);
				}
				return;
			} catch (error) {
				if (signal.aborted) return;
				const delayMs = Math.min(retryMaxMs, retryMinMs * 2 ** attempt);
				this.log.warn("Model materialization failed; scheduling retry", {
					model: set.name,
					error: (error as Error).message,
					retry_ms: delayMs,
				});
				await sleep(delayMs, signal);
			}
		}
	}
}

/** Routers of prefill workers are shown with those that their answers go to, as in Dynamo. */
function placeOf(set: WorkerSet): GroupPlace {
	const home = set.answers ? set : set.group.answeringSet();
	const { workerType } = set;
	return {
		model: set.name,
		namespace: set.namespace,
		component: home?.component ?? set.component,
		targetComponent: set.component,
		targetEndpoint: set.endpoint,
		workerType: workerType === "prefill" ? "prefill" : "decode",
		phase: workerType === "prefill" || workerType === "decode" ? workerType : "aggregated",
	};
}

function isModel(record: DiscoveryRecord): record is ModelRecord {
	return record.type === "Model";
}

function needsMaterials(set: WorkerSet): boolean {
	return set.card.model_input === "Tokens" && (parseModelType(set.card.model_type)?.size ?? 0) > 0;
}

/** Settings that no card has a word for. */
function settingsWithoutCard(options: Partial<KvRouterOptions> | undefined): Partial<KvRouterOptions> {
	if (options === undefined) return {};
	const { expiryMs, cacheWaitMs } = options;
	return { ...(expiryMs !== undefined && { expiryMs }), ...(cacheWaitMs !== undefined && { cacheWaitMs }) };
}

/** Equal but for runtime_config.taints, the one member that may change while a record lives. */
function sameCard(a: ModelRecord, b: ModelRecord): boolean {
	return comparable(a) === comparable(b);
}

function comparable(record: ModelRecord): string {
	const { runtime_config, ...card } = record.card_json;
	const { taints: _taints, ...config } = runtime_config ?? {};
	return stringifyJson({ ...card, runtime_config: config });
}

/** Resolves after `ms` milliseconds, or when `signal` is aborted. */
function sleep(ms: number, signal: AbortSignal): Promise<void> {
	return new Promise((resolve) => {
		const finish = (): void => {
			clearTimeout(timer);
			signal.removeEventListener("abort", finish);
			resolve();
		};
		const timer = setTimeout(finish, ms);
		signal.addEventListener("abort", finish);
	});
}
