// SPDX-License-Identifier: Apache-2.0
// What is exported, as a receiver reads it; and that nobody suffers when there is none.
import { spawnSync } from "node:child_process";
import { type OtlpReceiver, startOtlpReceiver } from "@dynamo-ts/testing/internal";
import { afterEach, describe, expect, it } from "vitest";
import type { LogConfig } from "../log-settings.js";
import { createLogger, type LogRelay } from "../logging.js";
import { createMetricsRegistry } from "../metrics.js";
import { Telemetry } from "./telemetry.js";
import type { OtlpProtocol, TelemetryConfig } from "./telemetry-settings.js";

const TRACE = "0af7651916cd43dd8448eb211c80319c";
const CALLER = "b7ad6b7169203331";
const CONSOLE: LogConfig = { filter: "info", format: "jsonl", ansi: false, localTime: false };

let receiver: OtlpReceiver;
let lines: string[];
const open: Telemetry[] = [];

afterEach(async () => {
	await Promise.all(open.splice(0).map((telemetry) => telemetry.shutdown()));
	await receiver.close();
});

async function start(protocol: OtlpProtocol, more: Partial<TelemetryConfig> = {}) {
	receiver = await startOtlpReceiver(protocol);
	lines = [];
	const relay: LogRelay = {};
	const log = createLogger(CONSOLE, "a::b", (line) => lines.push(line), relay);
	const url = (path: string) => (protocol === "grpc" ? receiver.url : `${receiver.url}${path}`);
	const config: TelemetryConfig = {
		serviceName: "svc",
		sampling: { sampler: "parentbased_always_on", ratio: 1 },
		traces: { protocol, url: url("/v1/traces") },
		logs: { protocol, url: url("/v1/logs") },
		...more,
	};
	const telemetry = await Telemetry.start(config, CONSOLE, log, relay);
	open.push(telemetry);
	return { telemetry, log, config, tracer: telemetry.tracer };
}

describe.each(["grpc", "http/protobuf"] as const)("over %s", (protocol) => {
	it("spans and log lines arrive with all that belongs to them", async () => {
		const { telemetry, log, tracer } = await start(protocol);
		const outer = tracer.enter(
			"outer",
			{ traceparent: `00-${TRACE}-${CALLER}-01`, xRequestId: "odd ü\u0001" },
			{ kind: "server", startedAt: 1_795_000_000_000.25 },
		);
		const inner = outer.child("inner", { kind: "client", target: "my_target", module: "my::module" });
		inner.set("retry", true);
		inner.set("id", 18446744073709551615n);
		inner.setAttribute("ratio", 0.5);
		inner.setAttribute("count", 7);
		log.warn("it happened", { why: "so", n: 3 }, inner);
		inner.fail("lost");
		inner.end();
		outer.end(1_795_000_001_500.75);
		await telemetry.shutdown();

		const [first, second] = receiver.trace(TRACE);
		expect(first).toMatchObject({
			name: "outer",
			kind: "SERVER",
			parentSpanId: CALLER,
			flags: 769,
			resource: { "service.name": "svc" },
			scope: "svc",
			start: 1_795_000_000_000_250_000n,
			end: 1_795_000_001_500_750_000n,
			status: { code: 0, message: "" },
			attributes: { target: "request_span", trace_id: TRACE, parent_id: CALLER, trace_flags: "01" },
		});
		expect(first?.attributes.x_request_id).toBe("odd ü\u0001");
		expect(second).toMatchObject({
			name: "inner",
			kind: "CLIENT",
			parentSpanId: first?.spanId,
			flags: 257,
			status: { code: 2, message: "lost" },
			attributes: {
				target: "my_target",
				"code.module.name": "my::module",
				retry: true,
				id: "18446744073709551615",
				ratio: 0.5,
				count: 7,
			},
		});
		expect(second?.events).toMatchObject([
			{ name: "it happened", attributes: { level: "WARN", target: "a::b", why: "so", n: 3 } },
		]);
		const record = receiver.logs.find(({ body }) => body === "it happened");
		expect(record).toMatchObject({
			severity: 13,
			scope: "a::b",
			time: 0n,
			traceId: TRACE,
			spanId: second?.spanId,
			attributes: { why: "so", n: 3 },
			resource: { "service.name": "svc" },
		});
		expect(receiver.logs[0]).toMatchObject({
			body: "OpenTelemetry OTLP export enabled (traces and logs)",
			traceId: "",
		});
		expect(JSON.parse(lines[0] as string)).toMatchObject({ protocol, service: "svc", console_format: "jsonl" });
	});

	it("nothing of a trace is exported that its caller does not record", async () => {
		const { telemetry, log, tracer } = await start(protocol);
		const span = tracer.enter("a", { traceparent: `00-${TRACE}-${CALLER}-00` });
		log.info("unseen", undefined, span);
		span.child("b").end();
		span.end();
		log.info("seen");
		await telemetry.shutdown();
		expect(receiver.spans).toEqual([]);
		expect(receiver.logs.map(({ body }) => body)).not.toContain("unseen");
		expect(receiver.logs.map(({ body }) => body)).toContain("seen");
		expect(lines.some((line) => line.includes('"unseen"') && line.includes(TRACE))).toBe(true);
	});

	it("a receiver that refuses is told about once, and again when it takes", async () => {
		const { telemetry, tracer } = await start(protocol);
		receiver.behaviour = "refuse";
		for (let i = 0; i < 600; i++) tracer.enter("a", {}).end();
		await expect.poll(() => lines.filter((line) => line.includes("spans could not be exported")).length).toBe(1);
		receiver.behaviour = "take";
		for (let i = 0; i < 600; i++) tracer.enter("b", {}).end();
		await telemetry.shutdown();
		expect(receiver.spans.length).toBeGreaterThan(0);
		expect(lines.filter((line) => line.includes("spans are exported again")).length).toBe(1);
	});
});

it("metrics arrive under their own names, with buckets and labels", async () => {
	const { telemetry, config, log } = await start("grpc");
	const metrics = createMetricsRegistry({ labels: { worker_id: "1f" } });
	metrics.createCounter("requests_total", "Requests").inc(3);
	metrics.createGauge("depth", "Depth").set(-1.5);
	const histogram = metrics.createHistogram("took", "Took", { kind: "x" }, [1, 2]);
	for (const value of [0.5, 1.5, 1.75, 9]) histogram.observe(value);
	const moment = metrics.createGauge("moment", "Set at a push");
	metrics.addUpdateCallback(() => moment.set(7));
	const target = { protocol: "grpc", url: receiver.url, intervalMs: 60_000, resource: { env: "lab" } } as const;
	await telemetry.exportMetrics({ ...config, metrics: target }, metrics, log);
	await telemetry.shutdown();
	const byName = new Map(receiver.metrics.map((metric) => [metric.name, metric]));
	expect(byName.get("dynamo_component_requests_total")).toMatchObject({
		kind: "sum",
		monotonic: true,
		description: "Requests",
		scope: "dynamo.runtime.metrics",
		resource: { "service.name": "svc", env: "lab" },
		points: [{ value: 3, attributes: { worker_id: "1f" } }],
	});
	expect(byName.get("dynamo_component_moment")?.points).toMatchObject([{ value: 7 }]);
	expect(byName.get("dynamo_component_depth")).toMatchObject({ kind: "gauge", points: [{ value: -1.5 }] });
	expect(byName.get("dynamo_component_took")).toMatchObject({
		kind: "histogram",
		points: [
			{ value: 12.75, count: 4, bounds: [1, 2], buckets: [1, 2, 1], attributes: { kind: "x", worker_id: "1f" } },
		],
	});
});

it("metrics over http/protobuf are refused with a line, as Dynamo does", async () => {
	const { telemetry, config, log } = await start("grpc");
	const target = { protocol: "http/protobuf", url: receiver.url, intervalMs: 1, resource: {} } as const;
	await telemetry.exportMetrics({ ...config, metrics: target }, createMetricsRegistry(), log);
	expect(JSON.parse(lines.at(-1) as string)).toMatchObject({
		level: "ERROR",
		message: "OpenTelemetry metrics export is misconfigured; not exporting",
	});
});

it("shutdown does not wait for a receiver that never answers", async () => {
	const { telemetry, tracer } = await start("grpc");
	receiver.behaviour = "silent";
	for (let i = 0; i < 5000; i++) tracer.enter("a", {}).end();
	await telemetry.shutdown();
	expect(receiver.spans).toEqual([]);
});

/** Packages of OpenTelemetry that a process has loaded when a runtime runs in it. */
function loadedBy(env: Record<string, string>): string[] {
	const script = `
		import { createRequire } from "node:module";
		const { DistributedRuntime } = await import(${JSON.stringify(new URL("../../../dist/index.js", import.meta.url).href)});
		const runtime = await DistributedRuntime.create({ discoveryBackend: "mem", systemPort: -1 });
		runtime.tracer.enter("a", {}).end();
		await runtime.shutdown();
		const files = Object.keys(createRequire(import.meta.url).cache);
		const packages = files.flatMap((file) => file.match(/@opentelemetry[/+][a-z-]+/g) ?? []);
		// The API alone, without an SDK, is a dependency of prom-client.
		console.log(JSON.stringify([...new Set(packages)].filter((name) => !/api$/.test(name))));
	`;
	const child = spawnSync(process.execPath, ["--input-type=module", "-e", script], {
		encoding: "utf8",
		env: { ...process.env, DYN_LOG: "off", ...env },
	});
	expect(child.stderr).toBe("");
	return JSON.parse(child.stdout);
}

it("OpenTelemetry is not loaded where nothing is exported", async () => {
	receiver = await startOtlpReceiver();
	expect(loadedBy({ OTEL_EXPORT_ENABLED: "0" })).toEqual([]);
	const loaded = loadedBy({ OTEL_EXPORT_ENABLED: "1", OTEL_EXPORTER_OTLP_ENDPOINT: receiver.url });
	expect(loaded.some((name) => name.includes("exporter-trace-otlp-grpc"))).toBe(true);
});
