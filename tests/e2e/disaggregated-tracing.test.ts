// SPDX-License-Identifier: Apache-2.0
// Prefill and decode workers in processes of their own, on every request plane: one trace from the HTTP request over
// both legs, whatever becomes of the request and in whichever leg.
import { readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
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
	untilWorkerIdle,
	type WorkerChild,
} from "@dynamo-ts/testing/internal";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

const hf = testModel("hf");
const MODEL = "mock";

/** Prompts of so many tokens and a few more: one for all, one that takes a second, and two that one leg refuses. */
const SHORT = 1;
const SLOW = 400;
const TOO_LONG_TO_DECODE = 520;
const TOO_LONG_TO_PREFILL = 900;
const LIMITS = { prefill: 800, decode: 512 };

const chat = (words: number, more: Record<string, unknown> = {}) => ({
	model: MODEL,
	messages: [{ role: "user", content: "go ".repeat(words) }],
	max_tokens: 6,
	ignore_eos: true,
	...more,
});

const find = (spans: readonly OtlpSpan[], name: string) => spans.filter((span) => span.name === name);
const outcomes = (spans: readonly OtlpSpan[]) => spans.map(({ attributes }) => attributes["request.outcome"]);
const ROUTE = "router.route_request";
const ENGINE = ["queue", "prefill", "decode"];

/** Takes what a killed worker has left behind out of discovery, as happens by itself some seconds later. */
function forget(folder: string, workerId: unknown): void {
	for (const entry of readdirSync(folder, { recursive: true, withFileTypes: true })) {
		const path = join(entry.parentPath, entry.name);
		if (entry.isFile() && readFileSync(path, "utf8").includes(String(workerId))) rmSync(path);
	}
}

/** The lines of a tree for a worker's part in it. */
const handled = (indent: string, service: unknown, parts: readonly string[] = ENGINE) => [
	`${indent}handle_payload SERVER ${service}`,
	...parts.map((part) => `${indent}  ${part} INTERNAL ${service}`),
];

describe.each(PLANES)("disaggregated, over $name", (plane) => {
	const missing = plane.missing || hf.missing;
	let fleet: Fleet;
	let watch: TraceWatch;
	let frontend: HttpChild;
	const workers = new Map<string, WorkerChild>();

	beforeAll(async () => {
		if (missing) return;
		watch = await TraceWatch.start();
		fleet = await Fleet.over(plane);
		const start = async (role: "prefill" | "decode", name: string): Promise<void> => {
			const blockSize = 16;
			const args = [
				...["--disaggregation-mode", role, "--block-size", String(blockSize)],
				...["--num-gpu-blocks-override", String(LIMITS[role] / blockSize)],
				// Prompts are computed in many steps, so that there is time to leave or to be killed.
				...["--speedup-ratio", "0.2", "--decode-speedup-ratio", "5", "--max-num-batched-tokens", "16"],
			];
			workers.set(name, await fleet.mocker(hf.path, MODEL, args, watch.env(name)));
		};
		await Promise.all([
			...["prefill-1", "prefill-2"].map((name) => start("prefill", name)),
			...["decode-1", "decode-2"].map((name) => start("decode", name)),
		]);
		const args = ["--migration-limit", "2", "--enforce-disagg", "--router-mode", "round-robin"];
		frontend = await fleet.frontend(MODEL, args, watch.env("frontend"));
		await untilWorkers(4);
	}, 60_000);
	afterAll(async () => {
		await fleet?.stop();
		await watch?.close();
	});

	const untilWorkers = (count: number): Promise<void> =>
		until(`${count} workers are seen`, async () => {
			const { instances } = (await http(`${frontend.url}/health`)).json as { instances: { endpoint: string }[] };
			return instances.filter(({ endpoint }) => endpoint === "generate").length === count;
		});
	const post = (body: unknown, { headers }: ClientTrace, signal?: AbortSignal) =>
		http(`${frontend.url}/v1/chat/completions`, { body, headers, ...(signal ? { signal } : {}) });
	const stream = (body: unknown, { headers }: ClientTrace): Promise<SseStream> =>
		openStream(
			`${frontend.url}/v1/chat/completions`,
			body,
			{ kind: "chat", model: MODEL, allowReplacementCharacter: true },
			headers,
		);

	/** The worker of a role that has written about a trace, once there is one. */
	async function workerOf(trace: ClientTrace, role: "prefill" | "decode"): Promise<WorkerChild> {
		let found: WorkerChild | undefined;
		await until(`a ${role} worker has the request`, () => {
			found = [...workers].find(
				([name, { child }]) => name.startsWith(role) && traceLines(child, trace).length > 0,
			)?.[1];
			return found !== undefined;
		});
		return found as WorkerChild;
	}

	/** Where the spans of the legs come from, in their order. */
	const servicesOf = (spans: readonly OtlpSpan[]) =>
		find(spans, "handle_payload").map(({ resource }) => resource["service.name"] as string);

	/** Every process says the same ids on every line about the request. */
	function checkLines(trace: ClientTrace, spans: readonly OtlpSpan[]): void {
		const requestId = spans[0]?.attributes.request_id;
		for (const child of [frontend.child, ...[...workers.values()].map((worker) => worker.child)]) {
			for (const line of traceLines(child, trace)) {
				expect(line).toMatchObject({
					trace_id: trace.traceId,
					x_request_id: trace.headers["x-request-id"],
					request_id: requestId,
				});
			}
		}
	}

	test.skipIf(missing)(titled("an answer: both workers hang on the trace", missing), async () => {
		const trace = watch.trace();
		expect((await post(chat(SHORT), trace)).status).toBe(200);
		const spans = await watch.spans(trace, 12);
		const [prefill, decode] = servicesOf(spans);
		expect([prefill, decode]).toEqual([expect.stringMatching("prefill"), expect.stringMatching("decode")]);
		expect(spanTree(spans)).toEqual([
			"http-request INTERNAL frontend",
			"  prefill_routing INTERNAL frontend",
			`    ${ROUTE} CLIENT frontend`,
			...handled("      ", prefill),
			`  ${ROUTE} CLIENT frontend`,
			...handled("    ", decode),
		]);
		for (const { status } of spans) expect(status.code).toBe(0);
		expect(
			outcomes([...find(spans, "http-request"), ...find(spans, "prefill_routing"), ...find(spans, ROUTE)]),
		).toEqual(Array(4).fill("success"));
		const [request] = spans as [OtlpSpan];
		const [ofPrefill, ofDecode] = find(spans, "handle_payload") as [OtlpSpan, OtlpSpan];
		expect(request.attributes).toMatchObject({
			prefill_worker_id: ofPrefill.attributes.instance_id,
			decode_worker_id: ofDecode.attributes.instance_id,
			output_tokens: "6",
		});
		for (const { attributes } of find(spans, "handle_payload")) {
			expect(attributes).toMatchObject({
				x_request_id: trace.headers["x-request-id"],
				request_id: request.attributes.request_id,
			});
		}
		checkLines(trace, spans);
		for (const service of [prefill, decode]) {
			const lines = traceLines((workers.get(service as string) as WorkerChild).child, trace);
			expect(lines.map(({ message }) => message)).toEqual(["request received", "request completed"]);
		}
	});

	test.skipIf(missing)(titled("an error of the prefill worker: nothing of a decode worker", missing), async () => {
		const trace = watch.trace();
		const { status } = await post(chat(TOO_LONG_TO_PREFILL), trace);
		expect(status).toBe(400);
		const spans = await watch.spans(trace, 4);
		expect(spanTree(spans)).toEqual([
			"http-request INTERNAL frontend",
			"  prefill_routing INTERNAL frontend",
			`    ${ROUTE} CLIENT frontend`,
			...handled("      ", servicesOf(spans)[0], []),
		]);
		const [request, prefill, route, handle] = spans as [OtlpSpan, OtlpSpan, OtlpSpan, OtlpSpan];
		const why = expect.stringContaining(`context length is ${LIMITS.prefill} tokens`);
		expect([request, prefill, route, handle].map(({ status }) => status)).toEqual([
			{ code: 2, message: "" },
			{ code: 2, message: why },
			{ code: 2, message: "invalid_argument" },
			{ code: 2, message: why },
		]);
		expect(outcomes([request, prefill, route])).toEqual(["error", "error", "error"]);
		checkLines(trace, spans);
	});

	test.skipIf(missing)(titled("an error of the decode worker: the prefill leg is none", missing), async () => {
		const trace = watch.trace();
		const { status } = await post(chat(TOO_LONG_TO_DECODE), trace);
		expect(status).toBe(400);
		const spans = await watch.spans(trace, 9);
		const [prefill, decode] = servicesOf(spans);
		expect(spanTree(spans)).toEqual([
			"http-request INTERNAL frontend",
			"  prefill_routing INTERNAL frontend",
			`    ${ROUTE} CLIENT frontend`,
			...handled("      ", prefill),
			`  ${ROUTE} CLIENT frontend`,
			...handled("    ", decode, []),
		]);
		expect(find(spans, ROUTE).map(({ status }) => status.code)).toEqual([0, 2]);
		expect(find(spans, "handle_payload").map(({ status }) => status.code)).toEqual([0, 2]);
		expect(find(spans, "prefill_routing")[0]?.status.code).toBe(0);
		expect(spans[0]).toMatchObject({ status: { code: 2 }, attributes: { "request.outcome": "error" } });
		checkLines(trace, spans);
	});

	test.skipIf(missing)(titled("a client that leaves while its prompt is computed", missing), async () => {
		const trace = watch.trace();
		const abort = new AbortController();
		const answer = post(chat(SLOW), trace, abort.signal).catch(() => undefined);
		const worker = await workerOf(trace, "prefill");
		abort.abort();
		expect(await answer, "it was answered before the client left").toBeUndefined();
		const spans = await watch.spans(trace, 5);
		expect(spanTree(spans)).toEqual([
			"http-request INTERNAL frontend",
			"  prefill_routing INTERNAL frontend",
			`    ${ROUTE} CLIENT frontend`,
			...handled("      ", servicesOf(spans)[0], ["queue"]),
		]);
		for (const { status } of spans) expect(status.code).toBe(0);
		const [request, prefill, route, handle] = spans as [OtlpSpan, OtlpSpan, OtlpSpan, OtlpSpan];
		expect(outcomes([request, prefill, route])).toEqual(Array(3).fill("cancelled"));
		expect(route.attributes["cancellation.signal"]).toBe("kill");
		expect(handle.events.map(({ name }) => name)).toContain("request cancellation received");
		checkLines(trace, spans);
		await untilWorkerIdle(worker);
	});

	test.skipIf(missing)(titled("a client that leaves while it is answered", missing), async () => {
		const trace = watch.trace();
		const answer = await stream(chat(SHORT, { max_tokens: 400, stream: true }), trace);
		await answer.events(2);
		answer.abort();
		const spans = await watch.spans(trace, 12);
		const [prefill, decode] = servicesOf(spans);
		expect(spanTree(spans)).toEqual([
			"http-request INTERNAL frontend",
			"  prefill_routing INTERNAL frontend",
			`    ${ROUTE} CLIENT frontend`,
			...handled("      ", prefill),
			`  ${ROUTE} CLIENT frontend`,
			...handled("    ", decode),
		]);
		for (const { status } of spans) expect(status.code).toBe(0);
		expect(outcomes([spans[0] as OtlpSpan, ...find(spans, ROUTE)])).toEqual(["cancelled", "success", "cancelled"]);
		expect(find(spans, "prefill_routing")[0]?.attributes["request.outcome"]).toBe("success");
		expect(find(spans, ROUTE)[1]?.attributes["cancellation.signal"]).toBe("stream_drop");
		checkLines(trace, spans);
	});

	test.skipIf(missing)(
		titled("a decode worker that is killed: both legs once more, in the same trace", missing),
		async () => {
			const trace = watch.trace();
			const answer = await stream(chat(SHORT, { max_tokens: 100, stream: true }), trace);
			await answer.events(2);
			const victim = await workerOf(trace, "decode");
			victim.child.kill("SIGKILL");
			expect((await answer.finished()).choices[0]?.finishReason).toBe("length");
			// The lost worker could not say anything any more: its spans are missing, and no others.
			const spans = await watch.spans(trace, 19);
			const [first, second, decode] = servicesOf(spans);
			expect(spanTree(spans)).toEqual([
				"http-request INTERNAL frontend",
				"  prefill_routing INTERNAL frontend",
				`    ${ROUTE} CLIENT frontend`,
				...handled("      ", first),
				`  ${ROUTE} CLIENT frontend`,
				"  prefill_routing INTERNAL frontend",
				`    ${ROUTE} CLIENT frontend`,
				...handled("      ", second),
				`  ${ROUTE} CLIENT frontend`,
				...handled("    ", decode),
			]);
			const routes = find(spans, ROUTE);
			expect(routes.map(({ status }) => status.message)).toEqual(["", "disconnected", "", ""]);
			expect(outcomes(routes)).toEqual(["success", "error", "success", "success"]);
			const facts = routes.map(({ attributes }) => [attributes["request.attempt"], attributes["migration.is_retry"]]);
			expect(facts).toEqual([
				["0", false],
				["0", false],
				["1", true],
				["1", true],
			]);
			expect(spans[0]).toMatchObject({
				status: { code: 0 },
				attributes: { "request.outcome": "success", output_tokens: "100" },
			});
			checkLines(trace, spans);
			forget(fleet.folder, routes[1]?.attributes.worker_id);
			await untilWorkers(3);
		},
	);

	test.skipIf(missing)(titled("a prefill worker that is killed: another one has the prompt", missing), async () => {
		const trace = watch.trace();
		const all = [...workers.values()];
		const before = await Promise.all(all.map(calledBack));
		const answer = post(chat(SLOW), trace);
		const victim = await workerOf(trace, "prefill");
		const earlier = before[all.indexOf(victim)] as number;
		await until("the worker has called back", async () => (await calledBack(victim)) > earlier);
		victim.child.kill("SIGKILL");
		expect((await answer).status).toBe(200);
		const spans = await watch.spans(trace, 13);
		const [prefill, decode] = servicesOf(spans);
		expect(spanTree(spans)).toEqual([
			"http-request INTERNAL frontend",
			"  prefill_routing INTERNAL frontend",
			`    ${ROUTE} CLIENT frontend`,
			`    ${ROUTE} CLIENT frontend`,
			...handled("      ", prefill),
			`  ${ROUTE} CLIENT frontend`,
			...handled("    ", decode),
		]);
		expect(workers.get(prefill as string)).not.toBe(victim);
		const routes = find(spans, ROUTE);
		expect(routes.map(({ status }) => status.message)).toEqual(["disconnected", "", ""]);
		expect(routes.map(({ attributes }) => attributes["request.attempt"])).toEqual(["0", "1", "0"]);
		expect(find(spans, "prefill_routing")[0]).toMatchObject({
			status: { code: 0 },
			attributes: { "request.outcome": "success" },
		});
		const scheduled = find(spans, "prefill_routing")[0]?.events.find(
			({ name }) => name === "migration retry scheduled",
		);
		expect(scheduled?.attributes).toMatchObject({ "migration.from_worker_id": routes[0]?.attributes.worker_id });
		checkLines(trace, spans);
		await untilFrontendIdle(frontend);
	});
});
