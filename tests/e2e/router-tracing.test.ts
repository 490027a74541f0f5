// SPDX-License-Identifier: Apache-2.0
// A standalone router in a process of its own between our frontend and workers: its spans and lines are part of the
// request's trace, whatever becomes of the request.
import { ENV, type EndpointRecord, type ModelRecord } from "@dynamo-ts/protocols/internal";
import { DistributedRuntime } from "@dynamo-ts/runtime";
import {
	type Child,
	type ClientTrace,
	type OtlpSpan,
	PLANES,
	spanTree,
	testModel,
	titled,
	until,
	untilFrontendIdle,
} from "@dynamo-ts/testing/internal";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { find, handled, SLOW_PREFILL, servicesOf, TracedFleet } from "./traced-fleet.js";

const hf = testModel("hf");
/** What the workers serve, and the same by way of the router. */
const DIRECT = "direct";
const ROUTED = "routed";
/** Tokens that a worker has room for. */
const LIMIT = 256;

const chat = (words: number, more: Record<string, unknown> = {}) => ({
	model: ROUTED,
	messages: [{ role: "user", content: "go ".repeat(words) }],
	max_tokens: 6,
	ignore_eos: true,
	...more,
});

const FRONTEND_ROUTE = "router.route_request";
const ROUTE = "kv_router.route_request";

/** What the router's choice looks like, and the attempt that follows it. */
const attempt = [
	"      kv_router.select_worker INTERNAL router",
	"        kv_router.compute_block_hashes INTERNAL router",
	"        kv_router.compute_seq_hashes INTERNAL router",
	"        kv_router.schedule INTERNAL router",
	`      ${ROUTE} CLIENT router`,
];
/** The lines of the tree of a request that a worker has had after so many attempts. */
const routed = (spans: readonly OtlpSpan[], parts?: readonly string[], attempts = 1) => [
	"http-request INTERNAL frontend",
	`  ${FRONTEND_ROUTE} CLIENT frontend`,
	"    handle_payload SERVER router",
	...Array.from({ length: attempts }, () => attempt).flat(),
	...handled("        ", servicesOf(spans).at(-1), parts),
];

describe.each(PLANES)("a standalone router, over $name", (plane) => {
	const missing = plane.missing || hf.missing;
	let world: TracedFleet;
	let runtime: DistributedRuntime;
	let router: Child;

	beforeAll(async () => {
		if (missing) return;
		world = await TracedFleet.over(plane);
		const { fleet, watch } = world;
		const args = ["--num-gpu-blocks-override", String(LIMIT / 16), ...SLOW_PREFILL];
		await Promise.all(["worker-1", "worker-2"].map((name) => world.addMocker(name, hf.path, DIRECT, args)));
		router = fleet.start(["router", "--endpoint", "dynamo.backend.generate"], watch.env("router"));
		runtime = await DistributedRuntime.create({
			discoveryBackend: "file",
			fileKvRoot: fleet.env[ENV.DYN_FILE_KV] as string,
			systemPort: -1,
			log: { filter: "off", format: "readable", ansi: false, localTime: false },
		});
		await cardForRouter(runtime);
		await world.startFrontend(ROUTED, ["--router-mode", "round-robin"]);
	}, 60_000);
	afterAll(async () => {
		await runtime?.shutdown();
		await world?.stop();
	});

	/** Frontend, router and worker have lines about the request, with its ids on each. */
	async function checkLines(trace: ClientTrace, spans: readonly OtlpSpan[]): Promise<void> {
		const { child } = await world.workerOf(trace);
		const counts = world.checkLines(trace, spans, [world.frontend.child, router, child]);
		expect(Math.min(...counts)).toBeGreaterThan(0);
		expect([...world.workers.keys()]).toContain(servicesOf(spans).at(-1));
	}

	test.skipIf(missing)(titled("an answer", missing), async () => {
		const trace = world.watch.trace();
		expect((await world.post(chat(1), trace)).status).toBe(200);
		const spans = await world.watch.spans(trace, 12);
		expect(spanTree(spans)).toEqual(routed(spans));
		for (const { status } of spans) expect(status.code).toBe(0);
		const [ofRouter, ofWorker] = find(spans, "handle_payload") as [OtlpSpan, OtlpSpan];
		expect(ofRouter.attributes).toMatchObject({ component: "router", endpoint: "generate" });
		expect(find(spans, FRONTEND_ROUTE)[0]?.attributes.worker_id).toBe(ofRouter.attributes.instance_id);
		expect(find(spans, ROUTE)[0]?.attributes).toMatchObject({
			worker_id: ofWorker.attributes.instance_id,
			phase: "Aggregated",
			"request.outcome": "success",
		});
		for (const { attributes } of [ofRouter, ofWorker]) {
			expect(attributes).toMatchObject({
				x_request_id: trace.headers["x-request-id"],
				request_id: spans[0]?.attributes.request_id,
			});
		}
		await checkLines(trace, spans);
	});

	test.skipIf(missing)(titled("an error of the worker", missing), async () => {
		const trace = world.watch.trace();
		expect((await world.post(chat(LIMIT + 20), trace)).status).toBe(400);
		const spans = await world.watch.spans(trace, 9);
		expect(spanTree(spans)).toEqual(routed(spans, []));
		const failed = [
			...find(spans, "http-request"),
			...find(spans, FRONTEND_ROUTE),
			...find(spans, ROUTE),
			...find(spans, "handle_payload"),
		];
		for (const { name, status } of failed) expect(status.code, name).toBe(2);
		await checkLines(trace, spans);
	});

	test.skipIf(missing)(titled("a client that leaves", missing), async () => {
		const trace = world.watch.trace();
		const answer = await world.stream(chat(1, { max_tokens: 200 }), trace);
		await answer.events(2);
		answer.abort();
		const spans = await world.watch.spans(trace, 12);
		expect(spanTree(spans)).toEqual(routed(spans));
		for (const { name, status } of spans) expect(status.code, name).toBe(0);
		for (const name of ["http-request", FRONTEND_ROUTE, ROUTE]) {
			expect(find(spans, name)[0]?.attributes["request.outcome"], name).toBe("cancelled");
		}
		await checkLines(trace, spans);
	});

	test.skipIf(missing)(
		titled("a worker that is killed with the prompt: the router asks another one", missing),
		async () => {
			const trace = world.watch.trace();
			const { answer, killed } = await world.postAndKill(chat(180), trace);
			expect(answer.status).toBe(200);
			const spans = await world.watch.spans(trace, 17, killed);
			expect(spanTree(spans)).toEqual(routed(spans, undefined, 2));
			const routes = find(spans, ROUTE);
			expect(routes.map(({ status }) => status.code)).toEqual([2, 0]);
			expect(routes.map(({ attributes }) => attributes["request.attempt"])).toEqual(["0", "1"]);
			for (const name of ["http-request", FRONTEND_ROUTE]) expect(find(spans, name)[0]?.status.code, name).toBe(0);
			await untilFrontendIdle(world.frontend);
		},
	);
});

/** Has frontends offer the workers' model by way of the router, once both are there. */
async function cardForRouter(runtime: DistributedRuntime): Promise<void> {
	let card: ModelRecord | undefined;
	let endpoint: EndpointRecord | undefined;
	await until("the workers' card and the router's endpoint", async () => {
		const cards = await runtime.discovery.list("v1/mdc");
		const endpoints = await runtime.discovery.list("v1/instances");
		card = cards.find((record): record is ModelRecord => record.type === "Model");
		endpoint = endpoints.find(
			(record): record is EndpointRecord =>
				record.type === "Endpoint" && record.component === "router" && record.endpoint === "generate",
		);
		return card !== undefined && endpoint !== undefined;
	});
	const { component, instance_id } = endpoint as EndpointRecord;
	const { card_json } = card as ModelRecord;
	await runtime.discovery.put({
		...(card as ModelRecord),
		component,
		instance_id,
		card_json: { ...card_json, display_name: ROUTED, slug: ROUTED },
	});
}
