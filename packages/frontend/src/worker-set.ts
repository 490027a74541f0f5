// SPDX-License-Identifier: Apache-2.0
import {
	type EndpointRecord,
	effectiveContextLength,
	type ModelDeploymentCard,
	type ModelRecord,
	mdcsum,
	parseModelType,
	type WorkerType,
} from "@dynamo-ts/protocols/internal";
import type { CardRouting, LoadMonitor, RoutingGroup } from "@dynamo-ts/router";
import type { EndpointClient } from "@dynamo-ts/runtime";
import type { ConditionalDisagg } from "./conditional-disagg.js";
import type { ModelMaterials } from "./model-materials.js";
import { WorkerGroup } from "./worker-group.js";

/** Identifies a set of workers whose cards must agree. */
export function workerSetKey(record: ModelRecord): string {
	const card = record.card_json;
	const types = [...(parseModelType(card.model_type) ?? [])].sort().join("|");
	const place = `${record.namespace}/${record.component}/${record.endpoint}`;
	return JSON.stringify([card.display_name, place, types, card.worker_type ?? null]);
}

/** What a set needs to be used; made once, after its first card was accepted. */
export interface WorkerSetParts {
	readonly client: EndpointClient;
	/** Absent for models that take text. */
	readonly materials: ModelMaterials | undefined;
}

/** A card's `router_config`, and what it comes to. */
export interface RoutingWish {
	readonly source: unknown;
	readonly routing: CardRouting;
	/** Which prompts decode workers compute themselves; undefined: none. */
	readonly conditional: ConditionalDisagg | undefined;
}

/** Interchangeable workers of one model: the same card (by its sum) on the same endpoint. */
export class WorkerSet {
	readonly key: string;
	readonly name: string;
	readonly namespace: string;
	readonly component: string;
	readonly endpoint: string;
	/** The card that was accepted first. */
	readonly card: ModelDeploymentCard;
	/** Sum of the card; all members have it. */
	readonly sum: string;
	readonly modelTypes: ReadonlySet<string>;
	/** A card without one is served as an aggregated worker. */
	readonly workerType: WorkerType;
	readonly router: RoutingGroup;
	/** Knows which members are too full; absent: nobody asks. */
	readonly load: LoadMonitor | undefined;
	/** What cards say about routing, in place of the frontend's settings; undefined: those hold. */
	readonly wish: RoutingWish | undefined;
	/** All sets of the model in the namespace, this one among them. */
	readonly group: WorkerGroup;
	/** Aborted when the set goes; ends the fetching of files. */
	readonly closing = new AbortController();
	/** Accepted model records, by instance. */
	private readonly members = new Map<bigint, { readonly keys: Set<string>; readonly card: ModelDeploymentCard }>();
	private parts: WorkerSetParts | undefined;
	/** Requests under way; a closed set keeps its client for them. */
	private inflight = 0;
	private seen: readonly EndpointRecord[] | undefined;
	private usable: readonly EndpointRecord[] = [];
	private seenLive: readonly EndpointRecord[] | undefined;
	private ownLive: readonly EndpointRecord[] = [];

	/** @param group absent: the model has no other set in the namespace. */
	constructor(record: ModelRecord, router: RoutingGroup, group: WorkerGroup = new WorkerGroup(), wish?: RoutingWish) {
		this.key = workerSetKey(record);
		this.name = record.card_json.display_name;
		this.namespace = record.namespace;
		this.component = record.component;
		this.endpoint = record.endpoint;
		this.card = record.card_json;
		this.sum = mdcsum(record.card_json);
		this.modelTypes = parseModelType(record.card_json.model_type) ?? new Set();
		this.workerType = record.card_json.worker_type ?? "aggregated";
		this.router = router;
		this.load = router.load;
		this.wish = wish;
		this.group = group;
		group.sets.add(this);
		router.knowMembers(() => this.live());
	}

	/** Requests of clients can come to it, if it has what it needs. */
	get answers(): boolean {
		return this.workerType !== "prefill" && this.workerType !== "encode";
	}

	/** One of the card's alternatives is there: of each type in it a live worker in the same namespace. */
	get needsMet(): boolean {
		const { needs } = this.card;
		if (needs === null || needs === undefined || needs.length === 0) return true;
		return needs.some((types) => types.every((type) => this.group.has(type)));
	}

	/** Prompts are computed by other workers, where there are any. */
	get takesPrefill(): boolean {
		return this.workerType === "decode";
	}

	/** Names that clients call the model by. */
	get publicNames(): readonly string[] {
		return [...new Set([this.name, ...(this.card.aliases ?? [])])];
	}

	/** Tokens that prompt and answer may have together, for display; 0: unknown. */
	get contextWindow(): number {
		return effectiveContextLength(this.card);
	}

	/** The limit that prompts are checked against, tokens; undefined when no part of the card gives a positive one. */
	get contextLimit(): number | undefined {
		const { runtime_config, context_length, architectural_max_context_length } = this.card;
		const known = [runtime_config?.context_length, context_length, architectural_max_context_length];
		return known.find((length) => typeof length === "number" && length > 0) as number | undefined;
	}

	/** Most requests that its workers run at once, of all together; 0 when the card does not say. */
	get maxRequests(): number {
		return this.size * (this.card.runtime_config?.max_num_seqs ?? 0);
	}

	/** Share of their KV cache that each of its workers says is in use, 0 to 1. */
	cacheUsages(): number[] {
		return [...this.members.keys()].map((id) => this.load?.usage(id) ?? 0);
	}

	/** Number of instances whose card was accepted. */
	get size(): number {
		return this.members.size;
	}

	/** Instances whose card was accepted, live or not. */
	memberIds(): bigint[] {
		return [...this.members.keys()];
	}

	/** Files are there and instances are being watched. */
	get committed(): boolean {
		return this.parts !== undefined && !this.closing.signal.aborted;
	}

	/** @throws Error before {@link commit}. */
	get client(): EndpointClient {
		if (this.parts === undefined) throw new Error(`worker set ${this.key} is not ready`);
		return this.parts.client;
	}

	get materials(): ModelMaterials | undefined {
		return this.parts?.materials;
	}

	add(instanceId: bigint, recordKey: string, card: ModelDeploymentCard = this.card): void {
		const member = this.members.get(instanceId);
		if (member === undefined) this.members.set(instanceId, { keys: new Set([recordKey]), card });
		else member.keys.add(recordKey);
		this.router.setTaints(instanceId, taintsOf(card));
		this.seen = undefined;
		this.seenLive = undefined;
	}

	/** A member's card is the same but for what may change while it lives. */
	renew(instanceId: bigint, card: ModelDeploymentCard): void {
		const member = this.members.get(instanceId);
		if (member === undefined) return;
		this.members.set(instanceId, { keys: member.keys, card });
		this.router.setTaints(instanceId, taintsOf(card));
	}

	/** A member's own card: those of a set may differ in `runtime_config`. */
	cardOf(instanceId: bigint): ModelDeploymentCard | undefined {
		return this.members.get(instanceId)?.card;
	}

	remove(instanceId: bigint, recordKey: string): void {
		const keys = this.members.get(instanceId)?.keys;
		if (keys?.delete(recordKey) && keys.size === 0) {
			this.members.delete(instanceId);
			this.router.forget(instanceId);
		}
		this.seen = undefined;
		this.seenLive = undefined;
	}

	commit(parts: WorkerSetParts): void {
		this.parts = parts;
		const { load } = this;
		if (load === undefined) return;
		parts.client.onChange(() => {
			const aside = new Set(parts.client.instances().map(({ instance_id }) => instance_id));
			for (const { instance_id } of parts.client.available()) aside.delete(instance_id);
			load.doubt(aside);
		});
	}

	/** Members that are live and have not failed lately; the same array until something changes. */
	candidates(): readonly EndpointRecord[] {
		if (!this.committed) return [];
		const available = this.client.available();
		if (available !== this.seen) {
			this.seen = available;
			this.usable = available.filter((instance) => this.members.has(instance.instance_id));
		}
		return this.usable;
	}

	/** Live members, failed ones included; the same array until something changes. */
	live(): readonly EndpointRecord[] {
		if (!this.committed) return [];
		const instances = this.client.instances();
		if (instances !== this.seenLive) {
			this.seenLive = instances;
			this.ownLive = instances.filter((instance) => this.members.has(instance.instance_id));
		}
		return this.ownLive;
	}

	/** A live member by its id; for requests that ask for a certain worker. */
	member(instanceId: bigint): EndpointRecord | undefined {
		return this.live().find((instance) => instance.instance_id === instanceId);
	}

	/** To be called for each request that is sent, with one {@link release} at its end. */
	acquire(): void {
		this.inflight++;
	}

	release(): void {
		this.inflight--;
		this.closeClient();
	}

	/** Takes no more requests. Those under way go on, and still hear of it when their instance disappears. */
	close(): void {
		this.closing.abort();
		this.closeClient();
	}

	private closeClient(): void {
		if (!this.closing.signal.aborted || this.inflight > 0) return;
		this.parts?.client.close();
		void this.router.close();
	}
}

/** Words on a card that requests can demand or prefer. */
function taintsOf({ runtime_config }: ModelDeploymentCard): readonly string[] {
	const taints: unknown = runtime_config?.taints;
	return Array.isArray(taints) ? taints.filter((taint) => typeof taint === "string") : [];
}
