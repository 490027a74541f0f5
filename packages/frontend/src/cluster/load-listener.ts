// SPDX-License-Identifier: Apache-2.0
// What workers tell of their load over the event plane; for those whose metrics cannot be read. Messages are kept as they
// come, several per second and worker, and read only when somebody looks.
import {
	decodeForwardPassMetrics,
	decodeWorkerLoad,
	type EndpointId,
	FORWARD_PASS_TOPIC,
	KV_METRICS_TOPIC,
} from "@dynamo-ts/protocols/internal";
import type { DistributedRuntime, EventSubscription } from "@dynamo-ts/runtime";

/** Requests and blocks of one worker, over all its ranks; undefined: not told yet. */
export interface ToldLoad {
	running?: number;
	waiting?: number;
	usedBlocks?: number;
}

/** Most publishers whose last message is kept. */
const MAX_PUBLISHERS = 65_536;

export class LoadListener {
	private readonly runtime: DistributedRuntime;
	private readonly subscriptions = new Map<string, Promise<EventSubscription | undefined>[]>();
	private readonly last = new Map<string, { readonly topic: string; readonly payload: Buffer }>();
	private closed = false;

	constructor(runtime: DistributedRuntime) {
		this.runtime = runtime;
	}

	/** Begins to listen to the workers of an endpoint; does nothing the second time. */
	listen(endpoint: EndpointId): void {
		const key = `${endpoint.namespace}/${endpoint.component}/${endpoint.name}`;
		if (this.closed || this.subscriptions.has(key)) return;
		const topics = [FORWARD_PASS_TOPIC, KV_METRICS_TOPIC].map((topic) => this.subscribe(endpoint, topic));
		this.subscriptions.set(key, topics);
		void Promise.all(topics).then((opened) => {
			// What could not be opened is tried again by the next call.
			if (opened.every((one) => one === undefined)) this.subscriptions.delete(key);
		});
	}

	private async subscribe(endpoint: EndpointId, topic: string): Promise<EventSubscription | undefined> {
		try {
			const subscription = await this.runtime.events.subscribe({ kind: "endpoint", endpoint }, topic, {
				onEvent: ({ publisherId, payload }) => {
					const key = `${topic}/${publisherId}`;
					if (this.last.size < MAX_PUBLISHERS || this.last.has(key)) this.last.set(key, { topic, payload });
				},
				onPublisherGone: (publisherId) => void this.last.delete(`${topic}/${publisherId}`),
			});
			if (!this.closed) return subscription;
			await subscription.close();
		} catch {
			// The view has gaps then; nothing depends on it.
		}
		return undefined;
	}

	/** The load of every worker that told it. */
	read(): Map<bigint, ToldLoad> {
		const loads = new Map<bigint, ToldLoad>();
		for (const { topic, payload } of this.last.values()) {
			try {
				if (topic === KV_METRICS_TOPIC) {
					const { workerId, kvUsedBlocks } = decodeWorkerLoad(payload);
					if (kvUsedBlocks !== undefined) add(loads, workerId, { usedBlocks: Number(kvUsedBlocks) });
				} else {
					const { workerId, scheduled, queued } = decodeForwardPassMetrics(payload);
					add(loads, workerId, {
						running: scheduled.numPrefillRequests + scheduled.numDecodeRequests,
						waiting: queued.numPrefillRequests + queued.numDecodeRequests,
					});
				}
			} catch {
				// A message of another version.
			}
		}
		return loads;
	}

	async close(): Promise<void> {
		this.closed = true;
		const opened = await Promise.all([...this.subscriptions.values()].flat());
		this.last.clear();
		await Promise.allSettled(opened.map((subscription) => subscription?.close()));
	}
}

function add(loads: Map<bigint, ToldLoad>, workerId: bigint, told: ToldLoad): void {
	const known = loads.get(workerId) ?? {};
	loads.set(workerId, known);
	for (const [key, value] of Object.entries(told) as [keyof ToldLoad, number][]) known[key] = (known[key] ?? 0) + value;
}
