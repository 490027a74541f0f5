// SPDX-License-Identifier: Apache-2.0
// What a span costs, and how much CPU of a frontend and a worker a request and a token take: with everything off, with the
// lines of `info`, with traces that the sampler leaves out, and with everything on (JSONL lines, traces, log lines and
// metrics exported over OTLP). Metrics are counted in each. Rounds in turn; medians.

import { Tracer } from "@dynamo-ts/runtime/internal";
import { Fleet, startOtlpReceiver, testModel } from "@dynamo-ts/testing/internal";
import { SpanExport } from "../packages/runtime/src/observability/tracing/otlp-export.js";
import { cpuSeconds, report } from "./lib.js";

const rounds = Number(process.argv[2] ?? 3);
const REQUESTS = Number(process.argv[3] ?? 600);
const STREAMS = 16;
/** Tokens of a request; what the longer one costs beyond the shorter is what tokens cost. */
const SHORT = 16;
const LONG = 272;
const SPANS = 100_000;

const median = (values: number[]) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)]!;
const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/** CPU microseconds of one span with four fields and an event, its share of a batch included. */
async function spanCost(name: string, sink: { end(span: never): void } | undefined): Promise<[string, string]> {
	const host = { sink: sink as never, lifecycle: undefined };
	const tracer = new Tracer(host, (_id, parent) => parent ?? true);
	const one = (): void => {
		const span = tracer.enter("handle_payload", { traceparent, xRequestId: "x" }, { kind: "server" });
		for (const key of ["component", "endpoint", "namespace", "instance_id"]) span.set(key, "dynamo");
		span.addEvent("request received", "info", "target", { request_id: "x" });
		span.end();
	};
	for (let i = 0; i < 20_000; i++) one();
	await new Promise((resolve) => setTimeout(resolve, 500));
	const before = process.cpuUsage();
	for (let i = 0; i < SPANS; i++) {
		one();
		// Batches leave between turns; without turns the queue would be full and spans dropped.
		if (i % 400 === 0) await new Promise((resolve) => setTimeout(resolve, 1));
	}
	await new Promise((resolve) => setTimeout(resolve, 500));
	const { user, system } = process.cpuUsage(before);
	return [name, ((user + system) / SPANS).toFixed(2)];
}

const receiver = await startOtlpReceiver();
receiver.behaviour = "discard";
const log = { info() {}, warn() {} } as never;
const spans = new SpanExport({ protocol: "grpc", url: receiver.url }, "bench", log);
report("One span (µs of CPU)", [
	Object.fromEntries([
		await spanCost("nobody records", undefined),
		await spanCost("recorded, thrown away", { end() {} }),
		await spanCost("exported over gRPC, receiver in the same process", spans),
	]),
]);
await spans.shutdown();

const model = testModel("hf");
if (model.missing !== "") throw new Error(model.missing);
const EXPORT = { OTEL_EXPORT_ENABLED: "1", OTEL_EXPORTER_OTLP_ENDPOINT: receiver.url };
const LINES = { DYN_LOG: "info", DYN_LOGGING_JSONL: "1" };
const MODES: Record<string, Record<string, string>> = {
	"everything off": { DYN_LOG: "off" },
	"lines of info": LINES,
	"silent, export on, nothing sampled": { DYN_LOG: "off", ...EXPORT, OTEL_TRACES_SAMPLE_RATIO: "0" },
	"everything on": { ...LINES, ...EXPORT, OTEL_METRICS_EXPORTER: "otlp", OTEL_METRIC_EXPORT_INTERVAL: "5000" },
};

/** Streams of so many tokens. @returns CPU microseconds per request, of each process. */
async function load(url: string, pids: readonly number[], tokens: number): Promise<number[]> {
	const before = pids.map(cpuSeconds);
	let left = REQUESTS;
	const lane = async (): Promise<void> => {
		while (left-- > 0) {
			const answer = await fetch(`${url}/v1/chat/completions`, {
				method: "POST",
				headers: { "content-type": "application/json", "x-request-id": "bench" },
				body: JSON.stringify({
					model: "m",
					messages: [{ role: "user", content: "Hi" }],
					max_tokens: tokens,
					ignore_eos: true,
					stream: true,
				}),
			});
			const text = await answer.text();
			if (!answer.ok || !text.endsWith("data: [DONE]\n\n")) throw new Error(`${answer.status}: ${text.slice(-200)}`);
		}
	};
	await Promise.all(Array.from({ length: STREAMS }, lane));
	return pids.map((pid, i) => ((cpuSeconds(pid) - before[i]!) / REQUESTS) * 1e6);
}

/** Of a mode: CPU microseconds of frontend and worker, by round. */
interface Figures {
	readonly perRequest: [number[], number[]];
	readonly perToken: [number[], number[]];
}

const figures: Record<string, Figures> = {};
for (let round = 0; round < rounds; round++) {
	for (const [name, env] of Object.entries(MODES)) {
		const fleet = new Fleet(env);
		figures[name] ??= { perRequest: [[], []], perToken: [[], []] };
		const { perRequest, perToken } = figures[name];
		try {
			const { child } = await fleet.mocker(model.path, "m", ["--speedup-ratio", "1000"]);
			const frontend = await fleet.frontend("m");
			const pids = [frontend.child.pid, child.pid];
			await load(frontend.url, pids, SHORT);
			const short = await load(frontend.url, pids, SHORT);
			const long = await load(frontend.url, pids, LONG);
			for (const i of [0, 1] as const) {
				perRequest[i].push(short[i]!);
				perToken[i].push((long[i]! - short[i]!) / (LONG - SHORT));
			}
		} finally {
			await fleet.stop();
		}
	}
}
await receiver.close();
report(
	`A streamed request of ${SHORT} tokens, and a further token of one (µs of CPU)`,
	Object.entries(figures).map(([mode, { perRequest, perToken }]) => ({
		mode,
		"frontend, request": median(perRequest[0]).toFixed(0),
		"worker, request": median(perRequest[1]).toFixed(0),
		"frontend, token": median(perToken[0]).toFixed(1),
		"worker, token": median(perToken[1]).toFixed(1),
	})),
);
