// SPDX-License-Identifier: Apache-2.0
import { fullMetricName, METRIC_PREFIXES, METRICS, type MetricFamily } from "@dynamo-ts/protocols/internal";
import { parsePrometheus } from "@dynamo-ts/testing/internal";
import { describe, expect, it } from "vitest";
import { createMetricsRegistry, type MetricsRegistry } from "../observability/metrics.js";
import { createEndpointObserver, createProcessWorkMetrics } from "./work-handler-metrics.js";

const endpointRegistry = () => {
	const root = createMetricsRegistry({ labels: { worker_id: "7c97daa84dbf2478" } });
	const endpoint = root
		.level({ labels: { dynamo_namespace: "dynamo" } })
		.level({ labels: { dynamo_component: "backend" } })
		.level({ labels: { dynamo_endpoint: "generate" } });
	return { root, endpoint };
};

const workHandlerRegistry = (root: MetricsRegistry) =>
	root.level({ prefix: METRIC_PREFIXES.workHandler, labels: null });

describe("work handler metrics", () => {
	it("are those of the catalogue, with the labels of the endpoint and those that it gives", async () => {
		const { root, endpoint } = endpointRegistry();
		const observer = createEndpointObserver(endpoint, createProcessWorkMetrics(workHandlerRegistry(root)), {
			model: "m",
		});
		observer.onInvalid("deserialization");
		const page = parsePrometheus(await root.scrape());
		const families = new Map<string, MetricFamily>();
		for (const group of ["component", "workHandler"] as const) {
			for (const family of Object.values(METRICS[group])) families.set(fullMetricName(group, family.name), family);
		}
		expect(page.families.size).toBe(9);
		for (const { name, type, help, samples } of page.families.values()) {
			const known = families.get(name);
			expect([type, help]).toEqual([known?.type, known?.help]);
			const { le: _le, ...labels } = samples[0]?.labels ?? {};
			const own = name.startsWith("dynamo_component") ? ["model"] : [];
			expect(Object.keys(labels)).toEqual([...(known?.labels ?? []), ...own].sort());
		}
	});

	it("every request that goes in comes out", async () => {
		const { root, endpoint } = endpointRegistry();
		const observer = createEndpointObserver(endpoint, createProcessWorkMetrics(workHandlerRegistry(root)));
		const request = observer.onRequest(100, { "x-frontend-send-ts-ns": `${BigInt(Date.now()) * 1_000_000n}` });
		const value = async (name: string) =>
			Number(new RegExp(`^${name}(?:\\{.*\\})? (.*)$`, "m").exec(await root.scrape())?.[1]);
		expect(await value("dynamo_component_inflight_requests")).toBe(1);
		request.onPrologue();
		request.onResponseBytes(30);
		request.onResponseBytes(12);
		request.onCancel("kill");
		request.onError("publish_response");
		request.onClose();
		expect(await value("dynamo_component_inflight_requests")).toBe(0);
		expect(await value("dynamo_component_requests_total")).toBe(1);
		expect(await value("dynamo_component_request_bytes_total")).toBe(100);
		expect(await value("dynamo_component_response_bytes_total")).toBe(42);
		expect(await value("dynamo_component_cancellation_total")).toBe(1);
		expect(await value("dynamo_component_errors_total")).toBe(1);
		expect(await value("dynamo_component_request_duration_seconds_count")).toBe(1);
		expect(await value("dynamo_work_handler_network_transit_seconds_count")).toBe(1);
		expect(await value("dynamo_work_handler_time_to_first_response_seconds_count")).toBe(1);
	});
});
