// SPDX-License-Identifier: Apache-2.0
// Prefill and decode workers of ours and of Dynamo's, behind our frontend and Dynamo's: one trace over both legs,
// whoever stands where.
import {
	type ClientTrace,
	findNatsServer,
	findRealDynamo,
	type HttpChild,
	http,
	type OtlpSpan,
	openStream,
	spanTree,
	TraceWatch,
	testModel,
	titled,
	until,
} from "@dynamo-ts/testing/internal";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Cluster, type Kind, MODEL_OF } from "./cluster.js";

const peer = findRealDynamo();
const hf = testModel("hf");
const nats = findNatsServer();
const KINDS: readonly Kind[] = ["our", "real"];
const PAIRS = KINDS.flatMap((front) => KINDS.map((back) => ({ front, back })));

/** What both have; ours has more: one around the prompt's way, and what the engine did. */
const COMMON = ["http-request", "router.route_request", "handle_payload"];

const chat = (back: Kind, more: Record<string, unknown> = {}) => ({
	model: MODEL_OF[back],
	messages: [{ role: "user", content: "Hi" }],
	max_tokens: 4,
	ignore_eos: true,
	...more,
});

describe.each(["tcp", "nats"] as const)("disaggregated, over %s", (plane) => {
	const missing = peer.missing || hf.missing || (plane === "nats" ? nats.missing : "");
	let cluster: Cluster;
	let watch: TraceWatch;
	const frontends = {} as Record<Kind, HttpChild>;

	beforeAll(async () => {
		if (missing) return;
		watch = await TraceWatch.start();
		cluster = await Cluster.start(peer.path, hf.path, plane, "file", { env: watch.env("dynamo") });
		for (const kind of KINDS) {
			for (const role of ["prefill", "decode"]) {
				const endpoint = `dyn://dynamo.${kind}-${role}.generate`;
				const args = ["--disaggregation-mode", role, "--endpoint", endpoint, "--speedup-ratio", "4"];
				await cluster.startMocker(kind, MODEL_OF[kind], args);
			}
		}
		for (const kind of KINDS) {
			frontends[kind] = await cluster.startFrontend(kind, MODEL_OF.our, []);
			const { child, url } = frontends[kind];
			const callable = async (): Promise<boolean> => {
				const answers = await Promise.all(
					KINDS.map((back) => http(`${url}/v1/chat/completions`, { body: chat(back) })),
				);
				return answers.every(({ status }) => status === 200);
			};
			await until(`the ${kind} frontend answers with both models`, callable, { timeoutMs: 60_000, child });
		}
	}, 240_000);
	afterAll(async () => {
		await cluster?.stop();
		await watch?.close();
	});

	/** The spans that both kinds make, once the request and both workers have ended theirs. */
	async function untilEnded(trace: ClientTrace): Promise<OtlpSpan[]> {
		const all = () => watch.receiver.trace(trace.traceId);
		const count = (name: string) => all().filter((span) => span.name === name).length;
		await until("all spans", () => count("http-request") === 1 && count("handle_payload") === 2, {
			timeoutMs: 20_000,
		});
		return all();
	}

	/** Both legs hang on the request; of whoever has both, the prompt's way is around its leg. */
	function check(spans: readonly OtlpSpan[], front: Kind, back: Kind): void {
		const known = new Set([...COMMON, "prefill_routing", "queue", "prefill", "decode"]);
		expect(spans.map(({ name }) => name).filter((name) => !known.has(name))).toEqual([]);
		const names = spanTree(spans).map((line) => line.replace(/ dynamo$/, ""));
		const parts = (indent: string) =>
			back === "our" ? ["queue", "prefill", "decode"].map((part) => `${indent}${part} INTERNAL`) : [];
		const leg = (indent: string) => [
			`${indent}router.route_request CLIENT`,
			`${indent}  handle_payload SERVER`,
			...parts(`${indent}    `),
		];
		const prefill = front === "our" ? ["  prefill_routing INTERNAL", ...leg("    ")] : leg("  ");
		expect(names).toEqual(["http-request INTERNAL", ...prefill, ...leg("  ")]);
		const [request] = spans as [OtlpSpan];
		const routes = spans.filter(({ name }) => name === "router.route_request");
		const handled = spans.filter(({ name }) => name === "handle_payload");
		for (const { attributes } of [...routes, ...handled]) {
			expect(attributes.request_id).toBe(request.attributes.request_id);
		}
		for (const { attributes } of handled) expect(attributes.x_request_id).toBe(request.attributes.x_request_id);
		expect(routes.map(({ attributes }) => attributes.worker_id)).toEqual(
			handled.map(({ attributes }) => attributes.instance_id),
		);
		expect(handled.map(({ attributes }) => attributes.component)).toEqual([`${back}-prefill`, `${back}-decode`]);
		for (const { name, status } of spans) expect(status.code, name).toBe(0);
	}

	for (const { front, back } of PAIRS) {
		test.skipIf(missing)(titled(`${front} frontend, ${back} workers: an answer`, missing), async () => {
			const trace = watch.trace();
			const { url } = frontends[front];
			const { status } = await http(`${url}/v1/chat/completions`, { headers: trace.headers, body: chat(back) });
			expect(status).toBe(200);
			const spans = await untilEnded(trace);
			check(spans, front, back);
			const [prefill, decode] = spans.filter(({ name }) => name === "handle_payload") as [OtlpSpan, OtlpSpan];
			expect(spans[0]?.attributes).toMatchObject({
				prefill_worker_id: prefill.attributes.instance_id,
				decode_worker_id: decode.attributes.instance_id,
				output_tokens: "4",
				"request.outcome": "success",
			});
		});

		test.skipIf(missing)(titled(`${front} frontend, ${back} workers: a client that leaves`, missing), async () => {
			const trace = watch.trace();
			const { url } = frontends[front];
			const stream = await openStream(
				`${url}/v1/chat/completions`,
				chat(back, { max_tokens: 2000, stream: true }),
				{ kind: "chat", model: MODEL_OF[back], allowReplacementCharacter: true },
				trace.headers,
			);
			await stream.events(2);
			stream.abort();
			const spans = await untilEnded(trace);
			check(spans, front, back);
			const outcomes = spans
				.filter(({ name }) => name === "http-request" || name === "router.route_request")
				.map(({ attributes }) => attributes["request.outcome"]);
			expect(outcomes).toEqual(["cancelled", "success", "cancelled"]);
		});
	}
});
