// SPDX-License-Identifier: Apache-2.0
// Whole processes, on every request plane, with a receiver in place of Tempo: one trace from the frontend to each
// worker, whatever becomes of the request, and its ids on every line about it.
import {
	type ClientTrace,
	Fleet,
	type HttpChild,
	http,
	type OtlpSpan,
	openStream,
	PLANES,
	spanTree,
	TraceWatch,
	testModel,
	titled,
	traceLines,
	until,
	type WorkerChild,
} from "@dynamo-ts/testing/internal";
import { afterEach, describe, expect, test } from "vitest";

const hf = testModel("hf");
const MODEL = "mock";

let fleet: Fleet | undefined;
let watch: TraceWatch | undefined;
afterEach(async () => {
	await fleet?.stop();
	await watch?.close();
	fleet = undefined;
	watch = undefined;
});

const chat = (more: Record<string, unknown> = {}) => ({
	model: MODEL,
	messages: [{ role: "user", content: "Count as far as you can." }],
	max_tokens: 6,
	ignore_eos: true,
	...more,
});

const find = (spans: readonly OtlpSpan[], name: string) => spans.filter((span) => span.name === name);

async function post(frontend: HttpChild, path: string, body: unknown, headers: Record<string, string>) {
	return await http(`${frontend.url}${path}`, { body, headers });
}

describe.each(PLANES)("over $name", (plane) => {
	const missing = plane.missing || hf.missing;

	test.skipIf(missing)(
		titled("aggregated: every outcome is one trace, and one set of lines", missing),
		async () => {
			const begun = await TraceWatch.start();
			watch = begun;
			const { receiver } = begun;
			fleet = await Fleet.over(plane);
			const start = fleet;
			const worker = (name: string): Promise<WorkerChild> =>
				start.mocker(hf.path, MODEL, ["--speedup-ratio", "10"], begun.env(name));
			const workers = await Promise.all([worker("worker-1"), worker("worker-2")]);
			const frontend = await fleet.frontend(MODEL, ["--migration-limit", "2"], begun.env("dynamo-frontend"));
			await until("both workers are seen", async () => {
				const { instances } = (await http(`${frontend.url}/health`)).json as { instances: { endpoint: string }[] };
				return instances.filter(({ endpoint }) => endpoint === "generate").length === 2;
			});

			const ok = begun.trace();
			expect((await post(frontend, "/v1/chat/completions", chat(), ok.headers)).status).toBe(200);
			const answered = await begun.spans(ok, 6);
			const service = find(answered, "handle_payload")[0]?.resource["service.name"];
			expect(spanTree(answered)).toEqual([
				"http-request INTERNAL dynamo-frontend",
				"  router.route_request CLIENT dynamo-frontend",
				`    handle_payload SERVER ${service}`,
				`      queue INTERNAL ${service}`,
				`      prefill INTERNAL ${service}`,
				`      decode INTERNAL ${service}`,
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
			const atWorker = workers.find(({ child }) => traceLines(child, ok).length > 0) as WorkerChild;
			for (const child of [frontend.child, atWorker.child]) {
				const lines = traceLines(child, ok);
				expect(lines.filter(({ message }) => message === "request received")).toHaveLength(1);
				expect(lines.filter(({ message }) => message === "request completed")).toHaveLength(1);
				for (const line of lines) {
					expect(line).toMatchObject({ x_request_id: ok.headers["x-request-id"], trace_id: ok.traceId });
					expect(line.request_id).toBe(request.attributes.request_id);
				}
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

			const refused = begun.trace();
			expect((await post(frontend, "/v1/chat/completions", chat({ temperature: 9 }), refused.headers)).status).toBe(
				400,
			);
			const [alone] = await begun.spans(refused, 1);
			expect(alone).toMatchObject({ status: { code: 2 }, attributes: { "request.outcome": "error" } });

			const unsampled = begun.trace("00");
			expect((await post(frontend, "/v1/chat/completions", chat(), unsampled.headers)).status).toBe(200);

			const left = begun.trace();
			const stream = await openStream(
				`${frontend.url}/v1/chat/completions`,
				chat({ max_tokens: 2000, stream: true }),
				{ kind: "chat", model: MODEL, allowReplacementCharacter: true },
				left.headers,
			);
			await stream.events(2);
			stream.abort();
			const cancelled = await begun.spans(left, 6);
			expect(spanTree(cancelled)).toHaveLength(6);
			expect(cancelled[0]).toMatchObject({ status: { code: 0 }, attributes: { "request.outcome": "cancelled" } });
			expect(find(cancelled, "router.route_request")[0]?.attributes["cancellation.signal"]).toBe("stream_drop");

			const moved = begun.trace();
			const long = await openStream(
				`${frontend.url}/v1/chat/completions`,
				chat({ max_tokens: 60, stream: true }),
				{ kind: "chat", model: MODEL, allowReplacementCharacter: true },
				moved.headers,
			);
			await long.events(2);
			const victim = workers.find(({ child }) => traceLines(child, moved).length > 0) as WorkerChild;
			victim.child.kill("SIGKILL");
			await long.finished();
			// The lost worker could not say anything any more: its spans are missing, and no others.
			const spans = await begun.spans(moved, 7);
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
			const begun = await TraceWatch.start("http/protobuf");
			watch = begun;
			const { receiver } = begun;
			fleet = await Fleet.over(plane);
			const args = ["--speedup-ratio", "10", "--disaggregation-mode"];
			await Promise.all([
				fleet.mocker(hf.path, MODEL, [...args, "prefill"], begun.env("prefill-1")),
				fleet.mocker(hf.path, MODEL, [...args, "decode"], begun.env("decode-1")),
			]);
			const frontend = await fleet.frontend(MODEL, ["--router-mode", "kv", "--enforce-disagg"], begun.env("frontend"));
			let trace: ClientTrace | undefined;
			await until("a request goes through", async () => {
				trace = begun.trace();
				const body = { model: MODEL, prompt: "Hi", max_tokens: 4 };
				return (await post(frontend, "/v1/completions", body, trace.headers)).status === 200;
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
