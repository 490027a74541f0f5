// SPDX-License-Identifier: Apache-2.0
// What the page of a router without a frontend says: as that of Dynamo 1.6.1's after the same requests; and what it says of
// other routers and of blocks that are only believed to be cached.
import { randomUUID } from "node:crypto";
import { startScriptedWorker } from "@dynamo-ts/frontend/internal";
import { ACTIVE_SEQUENCES_TOPIC } from "@dynamo-ts/protocols/internal";
import { type KvRouterOptions, StandaloneRouter } from "@dynamo-ts/router";
import type { DistributedRuntime } from "@dynamo-ts/runtime";
import { CollectingSink, type PromPage, parsePrometheus, until } from "@dynamo-ts/testing/internal";
import { afterEach, beforeEach, expect, test } from "vitest";
import { compare, recordedPage } from "./golden-pages.js";
import { ENDPOINT, OneProcess, TINY_FOLDER } from "./one-process.js";

let world: OneProcess;

beforeEach(() => {
	world = new OneProcess();
});
afterEach(() => world.end());

const pageOf = async (runtime: DistributedRuntime): Promise<PromPage> =>
	parsePrometheus(await runtime.metrics.scrape());

/** A router in a namespace of its own, so that requests find this one. */
async function startRouter(namespace: string, kv: Partial<KvRouterOptions> = {}): Promise<DistributedRuntime> {
	const runtime = await world.runtime();
	const router = await StandaloneRouter.start(runtime, { endpoint: ENDPOINT, namespace, kv });
	world.onEnd(() => router.close());
	return runtime;
}

/** Ids of no special meaning, different for each prompt. */
const promptOf = (number: number, length = 100): number[] =>
	Array.from({ length }, (_, i) => 10 + ((number * 97 + i * 31) % 290));

/** Sends a prompt through a router and waits for the end of the answer. */
async function generate(from: DistributedRuntime, namespace: string, prompt: number[], worker?: bigint): Promise<void> {
	const client = await from.namespace(namespace).component("router").endpoint("generate").client();
	const [instance] = await client.waitForInstances(5000);
	const sink = new CollectingSink();
	const payload = {
		token_ids: prompt,
		stop_conditions: { max_tokens: 2, ignore_eos: true },
		sampling_options: {},
		output_options: {},
		...(worker === undefined ? {} : { routing: { backend_instance_id: worker } }),
	};
	client.send(instance!, { id: randomUUID(), payload }, sink);
	await sink.done;
	client.close();
	if (sink.error !== undefined) throw sink.error;
}

test("the page of a router says what Dynamo's says", async () => {
	const workers = [await world.runtime(), await world.runtime()];
	for (const runtime of workers) await world.mocker(runtime, 1024, "kv-model", ENDPOINT.component);
	const client = await world.runtime();
	const router = await startRouter("dynamo");
	await startRouter("elsewhere");
	const [first, second] = workers.map(({ instanceId }) => instanceId);
	// As it was recorded: half of the requests went through another router.
	for (let p = 0; p < 4; p++) {
		await generate(client, p % 2 === 0 ? "dynamo" : "elsewhere", promptOf(p, 50), first);
		await generate(client, p % 2 === 0 ? "elsewhere" : "dynamo", promptOf(p), second);
	}
	const recorded = recordedPage("router/fixtures/observability/metrics_standalone_router.txt");
	const stored = { event_type: "stored", status: "ok" };
	await until("the router has heard of all blocks", async () => {
		return (await pageOf(router)).sum("dynamo_component_kv_cache_events_applied", stored) === 8;
	});
	const sequences = "dynamo_component_router_active_sequence";
	const decode = 'dynamo_component="backend",dynamo_namespace="dynamo",routing_group="default",worker_type="decode"';
	compare(recorded, await pageOf(router), {
		// Those of its endpoints are as with every process.
		elsewhere: /^dynamo_(?!component_(router|kv_cache|ckf)_)/,
		loose: /(seconds|_ms)_sum\{/,
		changed: {
			[`${sequences}_ingress_drain_batches_total{${decode}}`]: [-4, "only with --router-replica-sync"],
			[`${sequences}_ingress_events_applied_total{${decode}}`]: [-4, "only with --router-replica-sync"],
			[`${sequences}_zmq_ingress_sources{dynamo_component="backend",dynamo_namespace="dynamo"}`]: [-2, "the same"],
			'dynamo_component_router_inter_token_latency_seconds_count{dynamo_component="backend",dynamo_namespace="dynamo"}':
				[4, "counted in each router mode, one per answer of several tokens"],
		},
	});
});

test("what other routers tell is counted, and what cannot be read", async () => {
	await world.mocker(await world.runtime(), 1024, "m", ENDPOINT.component);
	const client = await world.runtime();
	await startRouter("one", { replicaSync: true });
	const other = await startRouter("two", { replicaSync: true });
	await generate(client, "one", promptOf(1));
	const sequences = "dynamo_component_router_active_sequence";
	await until("its beginning, the end of its prompt and its end are told", async () => {
		const page = await pageOf(other);
		const events = page.sum(`${sequences}_ingress_events_applied_total`, { model: "m", worker_type: "decode" });
		return events >= 3 && page.sum(`${sequences}_ingress_drain_batches_total`) > 0;
	});
	const publisher = await client.events.createPublisher(
		{ kind: "endpoint", endpoint: ENDPOINT },
		ACTIVE_SEQUENCES_TOPIC,
	);
	world.onEnd(() => publisher.close());
	await until("something that is no event is noticed", async () => {
		publisher.publish(Buffer.from([0xc1]));
		return (await pageOf(other)).sum(`${sequences}_zmq_ingress_payload_decode_errors_total`) > 0;
	});
	const page = await pageOf(other);
	// Both routers', the worker's and the test's.
	expect(page.sum(`${sequences}_zmq_ingress_sources`)).toBe(4);
	expect(page.sum(`${sequences}_zmq_ingress_sequence_gaps_total`)).toBe(0);
});

test("blocks that give way in the approximate cache are counted, and ranks that are too little known", async () => {
	await world.mocker(await world.runtime(), 16, "m", ENDPOINT.component);
	const client = await world.runtime();
	const believing = { useKvEvents: false, approximateCachePolicy: "lru" } as const;
	const router = await startRouter("dynamo", believing);
	for (let p = 0; p < 4; p++) await generate(client, "dynamo", promptOf(p));
	const page = await pageOf(router);
	const lru = "dynamo_component_router_approximate_lru";
	// Each prompt has six full blocks.
	expect(page.sum(`${lru}_evicted_blocks_total`)).toBe(4 * 6 - 16);
	expect(page.sum(`${lru}_eviction_batches_total`)).toBe(2);
	expect(page.sum(`${lru}_fallback_activations_total`)).toBe(0);
	expect(page.sum("dynamo_component_router_approximate_cache_effective_policy", { policy: "lru" })).toBe(1);
});

test("ranks whose size is not known are kept by time, and counted", async () => {
	const card = { kv_cache_block_size: 16, runtime_config: { total_kv_blocks: null } };
	const options = { model: "m", folder: TINY_FOLDER, script: () => {}, card };
	await startScriptedWorker(await world.runtime(), options);
	const router = await startRouter("dynamo", { useKvEvents: false, approximateCachePolicy: "lru" });
	for (let scrapes = 0; scrapes < 3; scrapes++) {
		const page = await pageOf(router);
		expect(page.sum("dynamo_component_router_approximate_lru_fallback_activations_total")).toBe(1);
		expect(page.sum("dynamo_component_router_approximate_cache_effective_policy", { policy: "ttl" })).toBe(1);
	}
});
