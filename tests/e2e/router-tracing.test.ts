// SPDX-License-Identifier: Apache-2.0
// A standalone router in a process of its own between our frontend and workers: its spans and lines are part of the
// request's trace, whatever becomes of the request.
import { ENV, type EndpointRecord, type ModelRecord } from "@dynamo-ts/protocols/internal";
import { DistributedRuntime } from "@dynamo-ts/runtime";
import {
	type ClientTrace,
	calledBack,
	Fleet,
	type HttpChild,
	http,
	type OtlpSpan,
	openStream,
	PLANES,
	type SseStream,
	spanTree,
	TraceWatch,
	testModel,
	titled,
	traceLines,
	until,
	untilFrontendIdle,
	type WorkerChild,
} from "@dynamo-ts/testing/internal";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

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

const find = (spans: readonly OtlpSpan[], name: string) => spans.filter((span) => span.name === name);
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
const before = [
	"http-request INTERNAL frontend",
	`  ${FRONTEND_ROUTE} CLIENT frontend`,
	"    handle_payload SERVER router",
	...attempt,
];

describe.each(PLANES)("a standalone router, over $name", (plane) => {
	const missing = plane.missing || hf.missing;
	let fleet: Fleet;
	let watch: TraceWatch;
	let runtime: DistributedRuntime;
	let router: WorkerChild["child"];
	let frontend: HttpChild;
	const workers = new Map<string, WorkerChild>();

	beforeAll(async () => {
		if (missing) return;
		watch = await TraceWatch.start();
		fleet = await Fleet.over(plane);
		await Promise.all(
			["worker-1", "worker-2"].map(async (name) => {
				const args = ["--block-size", "16", "--num-gpu-blocks-override", String(LIMIT / 16)];
				const speed = ["--speedup-ratio", "0.2", "--decode-speedup-ratio", "5", "--max-num-batched-tokens", "16"];
				workers.set(name, await fleet.mocker(hf.path, DIRECT, [...args, ...speed], watch.env(name)));
			}),
		);
		router = fleet.start(["router", "--endpoint", "dynamo.backend.generate"], watch.env("router"));
		runtime = await DistributedRuntime.create({
			discoveryBackend: "file",
			fileKvRoot: fleet.env[ENV.DYN_FILE_KV] as string,
			systemPort: -1,
			log: { filter: "off", format: "readable", ansi: false, localTime: false },
		});
		await cardForRouter(runtime);
		frontend = await fleet.frontend(ROUTED, ["--router-mode", "round-robin"], watch.env("frontend"));
	}, 60_000);
	afterAll(async () => {
		await runtime?.shutdown();
		await fleet?.stop();
		await watch?.close();
	});

	const post = (body: unknown, { headers }: ClientTrace) =>
		http(`${frontend.url}/v1/chat/completions`, { body, headers });
	const stream = (body: unknown, { headers }: ClientTrace): Promise<SseStream> =>
		openStream(
			`${frontend.url}/v1/chat/completions`,
			body,
			{ kind: "chat", model: ROUTED, allowReplacementCharacter: true },
			headers,
		);
	/** The worker that has written about a trace, once there is one. */
	async function workerOf(trace: ClientTrace): Promise<WorkerChild> {
		let found: WorkerChild | undefined;
		await until("a worker has the request", () => {
			found = [...workers.values()].find(({ child }) => traceLines(child, trace).length > 0);
			return found !== undefined;
		});
		return found as WorkerChild;
	}
	const handled = (spans: readonly OtlpSpan[], parts: readonly string[]) => {
		const service = find(spans, "handle_payload").at(-1)?.resource["service.name"];
		expect([...workers.keys()]).toContain(service);
		return [
			`        handle_payload SERVER ${service}`,
			...parts.map((part) => `          ${part} INTERNAL ${service}`),
		];
	};

	/** Every process says the same ids on every line about the request, and each has lines about it. */
	function checkLines(trace: ClientTrace, spans: readonly OtlpSpan[], worker: WorkerChild): void {
		for (const child of [frontend.child, router, worker.child]) {
			const lines = traceLines(child, trace);
			expect(lines.length).toBeGreaterThan(0);
			for (const line of lines) {
				expect(line).toMatchObject({
					trace_id: trace.traceId,
					x_request_id: trace.headers["x-request-id"],
					request_id: spans[0]?.attributes.request_id,
				});
			}
		}
	}

	test.skipIf(missing)(titled("an answer", missing), async () => {
		const trace = watch.trace();
		expect((await post(chat(1), trace)).status).toBe(200);
		const spans = await watch.spans(trace, 12);
		expect(spanTree(spans)).toEqual([...before, ...handled(spans, ["queue", "prefill", "decode"])]);
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
		checkLines(trace, spans, await workerOf(trace));
	});

	test.skipIf(missing)(titled("an error of the worker", missing), async () => {
		const trace = watch.trace();
		expect((await post(chat(LIMIT + 20), trace)).status).toBe(400);
		const spans = await watch.spans(trace, 9);
		expect(spanTree(spans)).toEqual([...before, ...handled(spans, [])]);
		const failed = [
			...find(spans, "http-request"),
			...find(spans, FRONTEND_ROUTE),
			...find(spans, ROUTE),
			...find(spans, "handle_payload"),
		];
		for (const { name, status } of failed) expect(status.code, name).toBe(2);
		checkLines(trace, spans, await workerOf(trace));
	});

	test.skipIf(missing)(titled("a client that leaves", missing), async () => {
		const trace = watch.trace();
		const answer = await stream(chat(1, { max_tokens: 200, stream: true }), trace);
		await answer.events(2);
		answer.abort();
		const spans = await watch.spans(trace, 12);
		expect(spanTree(spans)).toEqual([...before, ...handled(spans, ["queue", "prefill", "decode"])]);
		for (const { name, status } of spans) expect(status.code, name).toBe(0);
		for (const name of ["http-request", FRONTEND_ROUTE, ROUTE]) {
			expect(find(spans, name)[0]?.attributes["request.outcome"], name).toBe("cancelled");
		}
		checkLines(trace, spans, await workerOf(trace));
	});

	test.skipIf(missing)(
		titled("a worker that is killed with the prompt: the router asks another one", missing),
		async () => {
			const trace = watch.trace();
			const all = [...workers.values()];
			const earlier = await Promise.all(all.map(calledBack));
			const answer = post(chat(180), trace);
			const victim = await workerOf(trace);
			const count = earlier[all.indexOf(victim)] as number;
			await until("the worker has called back", async () => (await calledBack(victim)) > count);
			victim.child.kill("SIGKILL");
			expect((await answer).status).toBe(200);
			const spans = await watch.spans(trace, 17);
			expect(spanTree(spans)).toEqual([...before, ...attempt, ...handled(spans, ["queue", "prefill", "decode"])]);
			const routes = find(spans, ROUTE);
			expect(routes.map(({ status }) => status.code)).toEqual([2, 0]);
			expect(routes.map(({ attributes }) => attributes["request.attempt"])).toEqual(["0", "1"]);
			for (const name of ["http-request", FRONTEND_ROUTE]) expect(find(spans, name)[0]?.status.code, name).toBe(0);
			await untilFrontendIdle(frontend);
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
