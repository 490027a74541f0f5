// SPDX-License-Identifier: Apache-2.0
// Whole processes, on every request plane, with a receiver in place of Tempo: one trace from the frontend to each
// worker, whatever becomes of the request, and its ids on every line about it.
import {
	type ClientTrace,
	http,
	type OtlpSpan,
	PLANES,
	spanTree,
	testModel,
	titled,
	traceLines,
	until,
} from "@dynamo-ts/testing/internal";
import { afterEach, describe, expect, test } from "vitest";
import { find, handled, servicesOf, TracedFleet } from "./traced-fleet.js";

const hf = testModel("hf");
const MODEL = "mock";

let world: TracedFleet | undefined;
afterEach(async () => {
	await world?.stop();
	world = undefined;
});

const chat = (more: Record<string, unknown> = {}) => ({
	model: MODEL,
	messages: [{ role: "user", content: "Count as far as you can." }],
	max_tokens: 6,
	ignore_eos: true,
	...more,
});

describe.each(PLANES)("over $name", (plane) => {
	const missing = plane.missing || hf.missing;

	test.skipIf(missing)(
		titled("aggregated: every outcome is one trace, and one set of lines", missing),
		async () => {
			const begun = await TracedFleet.over(plane);
			world = begun;
			const { receiver } = begun.watch;
			const start = (name: string) => begun.addMocker(name, hf.path, MODEL, ["--speedup-ratio", "10"]);
			await Promise.all([start("worker-1"), start("worker-2")]);
			await begun.startFrontend(MODEL, ["--migration-limit", "2"]);
			const { frontend } = begun;
			await begun.untilWorkers(2);

			const ok = begun.watch.trace();
			expect((await begun.post(chat(), ok)).status).toBe(200);
			const answered = await begun.watch.spans(ok, 6);
			const service = servicesOf(answered)[0];
			expect(spanTree(answered)).toEqual([
				"http-request INTERNAL frontend",
				"  router.route_request CLIENT frontend",
				...handled("    ", service),
			]);
			const [request] = answered as [OtlpSpan];
			expect(request.attributes).toMatchObject({
				x_request_id: ok.headers["x-request-id"],
				output_tokens: "6",
				"gen_ai.usage.completion_tokens": 6,
				"request.outcome": "success",
			});
			expect(find(answered, "handle_payload")[0]?.attributes).toMatchObject({
				x_request_id: ok.headers["x-request-id"],
				request_id: request.attributes.request_id,
			});
			for (const { flags, spanId } of answered) {
				expect(flags).toBe(
					[request, ...find(answered, "handle_payload")].some((one) => one.spanId === spanId) ? 769 : 257,
				);
			}
			const atWorker = await begun.workerOf(ok);
			const children = [frontend.child, atWorker.child];
			begun.checkLines(ok, answered, children);
			for (const child of children) {
				const messages = traceLines(child, ok).map(({ message }) => message);
				expect(messages.filter((message) => message === "request received")).toHaveLength(1);
				expect(messages.filter((message) => message === "request completed")).toHaveLength(1);
			}
			expect(
				traceLines(frontend.child, ok)
					.map(({ message }) => message)
					.sort(),
			).toEqual([
				"Selected worker",
				"http response sent",
				"request completed",
				"request received",
				"route request completed",
			]);

			const refused = begun.watch.trace();
			expect((await begun.post(chat({ temperature: 9 }), refused)).status).toBe(400);
			const [alone] = await begun.watch.spans(refused, 1);
			expect(alone).toMatchObject({ status: { code: 2 }, attributes: { "request.outcome": "error" } });

			const unsampled = begun.watch.trace("00");
			expect((await begun.post(chat(), unsampled)).status).toBe(200);

			const left = begun.watch.trace();
			const stream = await begun.stream(chat({ max_tokens: 2000 }), left);
			await stream.events(2);
			stream.abort();
			const cancelled = await begun.watch.spans(left, 6);
			expect(spanTree(cancelled)).toHaveLength(6);
			expect(cancelled[0]).toMatchObject({ status: { code: 0 }, attributes: { "request.outcome": "cancelled" } });
			expect(find(cancelled, "router.route_request")[0]?.attributes["cancellation.signal"]).toBe("stream_drop");

			const moved = begun.watch.trace();
			const long = await begun.stream(chat({ max_tokens: 60 }), moved);
			await long.events(2);
			const victim = await begun.workerOf(moved);
			victim.child.kill("SIGKILL");
			await long.finished();
			const spans = await begun.watch.spans(moved, 7, victim.name);
			expect(spanTree(spans)).toHaveLength(7);
			const [first, second] = find(spans, "router.route_request") as [OtlpSpan, OtlpSpan];
			expect(first).toMatchObject({ status: { code: 2, message: "disconnected" } });
			expect(second).toMatchObject({ status: { code: 0 }, attributes: { "request.attempt": "1" } });
			expect(second.attributes["migration.is_retry"]).toBe(true);
			expect(spans[0]).toMatchObject({ attributes: { "request.outcome": "success", output_tokens: "60" } });

			expect(receiver.trace(unsampled.traceId)).toEqual([]);
			const { logs } = receiver;
			await until("the lines of a request are exported", async () =>
				logs.some(({ body, traceId }) => body === "request completed" && traceId === ok.traceId),
			);
			expect(receiver.logs.some(({ traceId }) => traceId === unsampled.traceId)).toBe(false);
		},
		60_000,
	);

	test.skipIf(missing)(
		titled("disaggregated, routed by cache: both legs hang on one trace", missing),
		async () => {
			const begun = await TracedFleet.over(plane, "http/protobuf");
			world = begun;
			const { receiver } = begun.watch;
			const args = ["--speedup-ratio", "10", "--disaggregation-mode"];
			await Promise.all(
				["prefill", "decode"].map((role) => begun.addMocker(`${role}-1`, hf.path, MODEL, [...args, role])),
			);
			await begun.startFrontend(MODEL, ["--router-mode", "kv", "--enforce-disagg"]);
			let trace: ClientTrace | undefined;
			await until("a request goes through", async () => {
				trace = begun.watch.trace();
				const body = { model: MODEL, prompt: "Hi", max_tokens: 4 };
				return (await http(`${begun.frontend.url}/v1/completions`, { body, headers: trace.headers })).status === 200;
			});
			const { traceId, headers } = trace as unknown as ClientTrace;
			await until(
				"all spans",
				async () =>
					find(receiver.trace(traceId), "http-request").length === 1 &&
					find(receiver.trace(traceId), "handle_payload").length === 2,
			);
			const spans = receiver.trace(traceId);
			const names = spanTree(spans.filter(({ name }) => !["queue", "prefill", "decode"].includes(name)));
			const selection = (indent: string) => [
				`${indent}kv_router.select_worker INTERNAL frontend`,
				`${indent}  kv_router.compute_block_hashes INTERNAL frontend`,
				`${indent}  kv_router.compute_seq_hashes INTERNAL frontend`,
				`${indent}  kv_router.schedule INTERNAL frontend`,
				`${indent}kv_router.route_request CLIENT frontend`,
			];
			expect(names).toEqual([
				"http-request INTERNAL frontend",
				"  completions INTERNAL frontend",
				"    completions_single INTERNAL frontend",
				"      prefill_routing INTERNAL frontend",
				...selection("        "),
				"          handle_payload SERVER prefill-1",
				...selection("      "),
				"        handle_payload SERVER decode-1",
			]);
			expect(find(spans, "kv_router.route_request").map(({ attributes }) => attributes.phase)).toEqual([
				"Prefill",
				"Decode",
			]);
			for (const span of find(spans, "handle_payload")) {
				expect(span.attributes.x_request_id).toBe(headers["x-request-id"]);
			}
			const [request] = spans as [OtlpSpan];
			const [prefill, decode] = find(spans, "handle_payload") as [OtlpSpan, OtlpSpan];
			expect(request.attributes).toMatchObject({
				prefill_worker_id: prefill.attributes.instance_id,
				decode_worker_id: decode.attributes.instance_id,
			});
		},
		60_000,
	);
});
