// SPDX-License-Identifier: Apache-2.0
// What a span costs, and how much CPU of a frontend and a worker a request takes: silent, with the lines of `info`, with
// traces and log lines exported, and with traces that the sampler leaves out. Rounds in turn; medians.

import { Tracer } from "@dynamo-ts/runtime/internal";
import { Fleet, startOtlpReceiver, testModel } from "@dynamo-ts/testing/internal";
import { SpanExport } from "../packages/runtime/src/observability/tracing/otlp-export.js";
import { cpuSeconds, report } from "./lib.js";

const rounds = Number(process.argv[2] ?? 3);
const REQUESTS = Number(process.argv[3] ?? 600);
const STREAMS = 16;
const TOKENS = 16;
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
receiver.behaviour = "refuse";
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
const ON = { OTEL_EXPORT_ENABLED: "1", OTEL_EXPORTER_OTLP_ENDPOINT: receiver.url };
const MODES: Record<string, Record<string, string>> = {
	silent: { DYN_LOG: "off" },
	"lines of info": { DYN_LOG: "info", DYN_LOGGING_JSONL: "1" },
	"lines, traces and lines exported": { DYN_LOG: "info", DYN_LOGGING_JSONL: "1", ...ON },
	"silent, export on, nothing sampled": { DYN_LOG: "off", ...ON, OTEL_TRACES_SAMPLE_RATIO: "0" },
};

/** CPU microseconds per request of frontend and worker. */
async function load(url: string, pids: readonly number[]): Promise<number[]> {
	const before = pids.map(cpuSeconds);
	let left = REQUESTS;
	await Promise.all(
		Array.from({ length: STREAMS }, async () => {
			while (left-- > 0) {
				const answer = await fetch(`${url}/v1/chat/completions`, {
					method: "POST",
					headers: { "content-type": "application/json", "x-request-id": "bench" },
					body: JSON.stringify({
						model: "m",
						messages: [{ role: "user", content: "Hi" }],
						max_tokens: TOKENS,
						ignore_eos: true,
						stream: true,
					}),
				});
				await answer.text();
			}
		}),
	);
	return pids.map((pid, i) => ((cpuSeconds(pid) - before[i]!) / REQUESTS) * 1e6);
}

const figures: Record<string, number[][]> = {};
for (let round = 0; round < rounds; round++) {
	for (const [name, env] of Object.entries(MODES)) {
		const fleet = new Fleet(env);
		try {
			const { child } = await fleet.mocker(model.path, "m", ["--speedup-ratio", "1000"]);
			const frontend = await fleet.frontend("m");
			const pids = [frontend.child.pid, child.pid];
			await load(frontend.url, pids);
			figures[name] ??= [[], []];
			for (const [i, cpu] of (await load(frontend.url, pids)).entries()) figures[name][i]!.push(cpu);
		} finally {
			await fleet.stop();
		}
	}
}
await receiver.close();
report(
	`A streamed request of ${TOKENS} tokens (µs of CPU)`,
	Object.entries(figures).map(([name, [frontend, worker]]) => ({
		mode: name,
		frontend: median(frontend!).toFixed(0),
		worker: median(worker!).toFixed(0),
	})),
);
