// SPDX-License-Identifier: Apache-2.0
// Prefill and decode workers in processes of their own, on every request plane: one trace from the HTTP request over
// both legs, whatever becomes of the request and in whichever leg.
import { readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import {
	type ClientTrace,
	type OtlpSpan,
	PLANES,
	spanTree,
	testModel,
	titled,
	traceLines,
	untilFrontendIdle,
	untilWorkerIdle,
	type WorkerChild,
} from "@dynamo-ts/testing/internal";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { find, handled, SLOW_PREFILL, servicesOf, TracedFleet } from "./traced-fleet.js";

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

const outcomes = (spans: readonly OtlpSpan[]) => spans.map(({ attributes }) => attributes["request.outcome"]);
const ROUTE = "router.route_request";

/** Takes what a killed worker has left behind out of discovery, as happens by itself some seconds later. */
function forget(folder: string, workerId: unknown): void {
	for (const entry of readdirSync(folder, { recursive: true, withFileTypes: true })) {
		const path = join(entry.parentPath, entry.name);
		if (entry.isFile() && readFileSync(path, "utf8").includes(String(workerId))) rmSync(path);
	}
}

/** The lines of the tree of a request that both legs have had, as far as they came. */
const bothLegs = (prefill: unknown, decode: unknown, decodeParts?: readonly string[]) => [
	"http-request INTERNAL frontend",
	"  prefill_routing INTERNAL frontend",
	`    ${ROUTE} CLIENT frontend`,
	...handled("      ", prefill),
	`  ${ROUTE} CLIENT frontend`,
	...handled("    ", decode, decodeParts),
];

/** The same of one that never left the prefill leg. */
const prefillLeg = (prefill: unknown, parts: readonly string[]) => [
	"http-request INTERNAL frontend",
	"  prefill_routing INTERNAL frontend",
	`    ${ROUTE} CLIENT frontend`,
	...handled("      ", prefill, parts),
];

describe.each(PLANES)("disaggregated, over $name", (plane) => {
	const missing = plane.missing || hf.missing;
	let world: TracedFleet;

	beforeAll(async () => {
		if (missing) return;
		world = await TracedFleet.over(plane);
		const start = (role: "prefill" | "decode", number: number): Promise<void> => {
			const blocks = String(LIMITS[role] / 16);
			const args = ["--disaggregation-mode", role, "--num-gpu-blocks-override", blocks, ...SLOW_PREFILL];
			return world.addMocker(`${role}-${number}`, hf.path, MODEL, args);
		};
		await Promise.all([1, 2].flatMap((number) => [start("prefill", number), start("decode", number)]));
		await world.startFrontend(MODEL, ["--migration-limit", "2", "--enforce-disagg", "--router-mode", "round-robin"]);
		await world.untilWorkers(4);
	}, 60_000);
	afterAll(() => world?.stop());

	/** Every process says the same ids on every line about the request. */
	function checkLines(trace: ClientTrace, spans: readonly OtlpSpan[]): void {
		const workers = [...world.workers.values()].map(({ child }) => child);
		const [atFrontend] = world.checkLines(trace, spans, [world.frontend.child, ...workers]);
		expect(atFrontend).toBeGreaterThan(0);
	}

	test.skipIf(missing)(titled("an answer: both workers hang on the trace", missing), async () => {
		const trace = world.watch.trace();
		expect((await world.post(chat(SHORT), trace)).status).toBe(200);
		const spans = await world.watch.spans(trace, 12);
		const [prefill, decode] = servicesOf(spans);
		expect([prefill, decode]).toEqual([expect.stringMatching("prefill"), expect.stringMatching("decode")]);
		expect(spanTree(spans)).toEqual(bothLegs(prefill, decode));
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
			const lines = traceLines((world.workers.get(service as string) as WorkerChild).child, trace);
			expect(lines.map(({ message }) => message)).toEqual(["request received", "request completed"]);
		}
	});

	test.skipIf(missing)(titled("an error of the prefill worker: nothing of a decode worker", missing), async () => {
		const trace = world.watch.trace();
		const { status } = await world.post(chat(TOO_LONG_TO_PREFILL), trace);
		expect(status).toBe(400);
		const spans = await world.watch.spans(trace, 4);
		expect(spanTree(spans)).toEqual(prefillLeg(servicesOf(spans)[0], []));
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
		const trace = world.watch.trace();
		const { status } = await world.post(chat(TOO_LONG_TO_DECODE), trace);
		expect(status).toBe(400);
		const spans = await world.watch.spans(trace, 9);
		const [prefill, decode] = servicesOf(spans);
		expect(spanTree(spans)).toEqual(bothLegs(prefill, decode, []));
		expect(find(spans, ROUTE).map(({ status }) => status.code)).toEqual([0, 2]);
		expect(find(spans, "handle_payload").map(({ status }) => status.code)).toEqual([0, 2]);
		expect(find(spans, "prefill_routing")[0]?.status.code).toBe(0);
		expect(spans[0]).toMatchObject({ status: { code: 2 }, attributes: { "request.outcome": "error" } });
		checkLines(trace, spans);
	});

	test.skipIf(missing)(titled("a client that leaves while its prompt is computed", missing), async () => {
		const trace = world.watch.trace();
		const abort = new AbortController();
		const answer = world.post(chat(SLOW), trace, abort.signal).catch(() => undefined);
		const worker = await world.workerOf(trace, "prefill");
		abort.abort();
		expect(await answer, "it was answered before the client left").toBeUndefined();
		const spans = await world.watch.spans(trace, 5);
		expect(spanTree(spans)).toEqual(prefillLeg(servicesOf(spans)[0], ["queue"]));
		for (const { status } of spans) expect(status.code).toBe(0);
		const [request, prefill, route, handle] = spans as [OtlpSpan, OtlpSpan, OtlpSpan, OtlpSpan];
		expect(outcomes([request, prefill, route])).toEqual(Array(3).fill("cancelled"));
		expect(route.attributes["cancellation.signal"]).toBe("kill");
		expect(handle.events.map(({ name }) => name)).toContain("request cancellation received");
		checkLines(trace, spans);
		await untilWorkerIdle(worker);
	});

	test.skipIf(missing)(titled("a client that leaves while it is answered", missing), async () => {
		const trace = world.watch.trace();
		const answer = await world.stream(chat(SHORT, { max_tokens: 400 }), trace);
		await answer.events(2);
		answer.abort();
		const spans = await world.watch.spans(trace, 12);
		const [prefill, decode] = servicesOf(spans);
		expect(spanTree(spans)).toEqual(bothLegs(prefill, decode));
		for (const { status } of spans) expect(status.code).toBe(0);
		expect(outcomes([spans[0] as OtlpSpan, ...find(spans, ROUTE)])).toEqual(["cancelled", "success", "cancelled"]);
		expect(find(spans, "prefill_routing")[0]?.attributes["request.outcome"]).toBe("success");
		expect(find(spans, ROUTE)[1]?.attributes["cancellation.signal"]).toBe("stream_drop");
		checkLines(trace, spans);
	});

	test.skipIf(missing)(
		titled("a decode worker that is killed: both legs once more, in the same trace", missing),
		async () => {
			const trace = world.watch.trace();
			const answer = await world.stream(chat(SHORT, { max_tokens: 100 }), trace);
			await answer.events(2);
			const victim = await world.workerOf(trace, "decode");
			victim.child.kill("SIGKILL");
			expect((await answer.finished()).choices[0]?.finishReason).toBe("length");
			const spans = await world.watch.spans(trace, 19, victim.name);
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
			forget(world.fleet.folder, routes[1]?.attributes.worker_id);
			await world.untilWorkers(3);
		},
	);

	test.skipIf(missing)(titled("a prefill worker that is killed: another one has the prompt", missing), async () => {
		const trace = world.watch.trace();
		const { answer, killed } = await world.postAndKill(chat(SLOW), trace, "prefill");
		expect(answer.status).toBe(200);
		const spans = await world.watch.spans(trace, 13, killed);
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
		await untilFrontendIdle(world.frontend);
	});
});
