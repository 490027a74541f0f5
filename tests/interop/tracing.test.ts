// SPDX-License-Identifier: Apache-2.0
// Traces through real and our frontends and mockers: one trace whoever stands where, and the same spans.
import {
	type ClientTrace,
	findNatsServer,
	findRealDynamo,
	type HttpChild,
	http,
	type OtlpSpan,
	TraceWatch,
	testModel,
	titled,
	traceLines,
	until,
	type WorkerChild,
} from "@dynamo-ts/testing/internal";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Cluster, type Kind, MODEL_OF } from "./cluster.js";

const peer = findRealDynamo();
const hf = testModel("hf");
const nats = findNatsServer();
const KINDS: readonly Kind[] = ["our", "real"];
const COMMON = ["http-request", "router.route_request", "handle_payload"];

/** What the real one's spans have and ours do not: positions in its sources, and times that Node does not tell. */
const LEFT_OUT = ["code.file.path", "code.line.number", "busy_ns", "idle_ns"];

/** What our lines have beside the real one's. */
const OUR_KEYS = ["finish_reason"];

describe.each(["tcp", "nats"] as const)("over %s", (plane) => {
	const missing = peer.missing || hf.missing || (plane === "nats" ? nats.missing : "");
	let cluster: Cluster;
	let watch: TraceWatch;
	const frontends = {} as Record<Kind, HttpChild>;
	const workers = {} as Record<Kind, WorkerChild>;
	const traceOf = new Map<string, ClientTrace>();
	const seen = new Map<string, OtlpSpan[]>();

	beforeAll(async () => {
		if (missing) return;
		watch = await TraceWatch.start();
		cluster = await Cluster.start(peer.path, hf.path, plane, "file", { env: watch.env("dynamo") });
		for (const kind of KINDS) workers[kind] = await cluster.mocker(kind);
		for (const kind of KINDS) frontends[kind] = await cluster.frontend(kind);
	}, 300_000);
	afterAll(async () => {
		await cluster?.stop();
		await watch?.close();
	});

	for (const front of KINDS) {
		for (const back of KINDS) {
			const title = titled(`${front} frontend, ${back} mocker: one trace`, missing);
			test.skipIf(missing)(
				title,
				async () => {
					const trace = watch.trace();
					const { traceId, headers } = trace;
					traceOf.set(`${front} ${back}`, trace);
					const answer = await http(`${frontends[front].url}/v1/chat/completions`, {
						headers,
						body: {
							model: MODEL_OF[back],
							messages: [{ role: "user", content: "Hi" }],
							max_tokens: 3,
							ignore_eos: true,
						},
					});
					expect(answer.status).toBe(200);
					const spans = (): OtlpSpan[] => watch.receiver.trace(traceId).filter(({ name }) => COMMON.includes(name));
					await until("all spans", async () => spans().length >= COMMON.length, { timeoutMs: 20_000 });
					const [request, route, handled] = COMMON.map((name) => spans().find((span) => span.name === name)) as [
						OtlpSpan,
						OtlpSpan,
						OtlpSpan,
					];
					expect(spans()).toHaveLength(COMMON.length);
					expect([request, route, handled].map(({ parentSpanId }) => parentSpanId)).toEqual([
						headers.traceparent.split("-")[2],
						request.spanId,
						route.spanId,
					]);
					expect([request, route, handled].map(({ kind, flags }) => [kind, flags])).toEqual([
						["INTERNAL", 769],
						["CLIENT", 257],
						["SERVER", 769],
					]);
					const id = answer.json.id.slice("chatcmpl-".length);
					for (const { attributes } of [request, route, handled]) expect(attributes.request_id).toBe(id);
					for (const { attributes } of [request, handled])
						expect(attributes.x_request_id).toBe(headers["x-request-id"]);
					expect(handled.attributes.instance_id).toBe(route.attributes.worker_id);
					expect(request.attributes).toMatchObject({ output_tokens: "3", "request.outcome": "success" });
					seen.set(`${front} http-request`, [request]);
					seen.set(`${front} router.route_request`, [route]);
					seen.set(`${back} handle_payload`, [handled]);
				},
				60_000,
			);
		}
	}

	test.skipIf(missing)(titled("spans, attributes and events have the real ones' names and types", missing), () => {
		for (const name of COMMON) {
			const [[ours], [real]] = KINDS.map((kind) => seen.get(`${kind} ${name}`)) as [[OtlpSpan], [OtlpSpan]];
			const shape = ({ attributes }: OtlpSpan) =>
				Object.fromEntries(Object.entries(attributes).map(([key, value]) => [key, typeof value]));
			const wanted = shape(real);
			for (const key of LEFT_OUT) delete wanted[key];
			expect(shape(ours)).toMatchObject(wanted);
			const more = Object.keys(shape(ours)).filter((key) => !(key in wanted));
			expect(more.filter((key) => !/^(gen_ai|llm)\./.test(key))).toEqual([]);
			for (const key of ["target", "code.module.name", "router_mode", "version", "migration.is_retry"]) {
				expect(ours.attributes[key], key).toEqual(real.attributes[key]);
			}
			const events = ({ events: all }: OtlpSpan) => all.map((event) => event.name).sort();
			expect(events(ours)).toEqual(events(real));
		}
	});

	test.skipIf(missing)(titled("lines about a request have the real ones' levels, targets and keys", missing), () => {
		for (const side of ["frontend", "worker"] as const) {
			const [ours, real] = KINDS.map((kind) => {
				const { child } = side === "frontend" ? frontends[kind] : workers[kind];
				return shapesOf(traceLines(child, traceOf.get(`${kind} ${kind}`) as ClientTrace));
			});
			expect(ours).toEqual(real);
		}
	});
});

/** Level, target, message, span and keys of the JSON lines of a trace, in the order of Dynamo's keys. */
function shapesOf(lines: Record<string, string>[]): string[] {
	return lines
		.map((line) => {
			const { level, target, message, span_name: span, ...fields } = line;
			const keys = Object.keys(fields).filter((key) => !["time", ...OUR_KEYS].includes(key));
			return `${level} ${target} ${message} ${span}: ${keys.join(" ")}`;
		})
		.sort();
}
