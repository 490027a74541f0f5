// SPDX-License-Identifier: Apache-2.0
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { createMetricsRegistry } from "../observability/metrics.js";
import { createEndpointObserver, createProcessWorkMetrics } from "./work-handler-metrics.js";

type Family = [
	role: string,
	name: string,
	type: string,
	help: string,
	labels: Record<string, string[]>,
	buckets: string[],
];
const recorded = JSON.parse(
	readFileSync(fileURLToPath(new URL("../../fixtures/observability/metric_families.json", import.meta.url)), "utf8"),
) as Family[];

const endpointRegistry = () => {
	const root = createMetricsRegistry({ labels: { worker_id: "7c97daa84dbf2478" } });
	const endpoint = root
		.level({ labels: { dynamo_namespace: "dynamo" } })
		.level({ labels: { dynamo_component: "backend" } })
		.level({ labels: { dynamo_endpoint: "generate" } });
	return { root, endpoint };
};

describe("work handler metrics", () => {
	it("have the names, types, helps, labels and buckets of the real worker", async () => {
		const { root, endpoint } = endpointRegistry();
		const observer = createEndpointObserver(endpoint, createProcessWorkMetrics(root));
		observer.onInvalid("deserialization");
		const page = await root.scrape();
		const families = [...page.matchAll(/^# HELP (\S+) (.*)\n# TYPE \S+ (.*)$/gm)];
		expect(families.length).toBeGreaterThan(9);
		for (const [, name, help, type] of families) {
			const known = recorded.find(([role, recordedName]) => role === "worker" && recordedName === name) as Family;
			expect(known, name).toBeDefined();
			expect(type).toBe(known[2]);
			expect(help).toBe(known[3]);
			const line = new RegExp(`^${name}(?:_count)?(?:\\{(.*)\\})? `, "m").exec(page);
			const labels = [...(line?.[1] ?? "").matchAll(/(\w+)="/g)].map((match) => match[1]);
			expect(labels, name).toEqual(Object.keys(known[4]).sort());
			if (type !== "histogram") continue;
			const buckets = [...page.matchAll(new RegExp(`^${name}_bucket\\{.*le="([^"]+)"`, "gm"))].map((match) => match[1]);
			expect(buckets.map(Number).filter(Number.isFinite), name).toEqual(known[5].map(Number).filter(Number.isFinite));
		}
	});

	it("every request that goes in comes out", async () => {
		const { root, endpoint } = endpointRegistry();
		const observer = createEndpointObserver(endpoint, createProcessWorkMetrics(root));
		const request = observer.onRequest(100, { "x-frontend-send-ts-ns": `${BigInt(Date.now()) * 1_000_000n}` });
		const value = async (name: string) =>
			Number(new RegExp(`^${name}(?:\\{.*\\})? (.*)$`, "m").exec(await root.scrape())?.[1]);
		expect(await value("dynamo_component_inflight_requests")).toBe(1);
		expect(await value("dynamo_work_handler_pool_active_tasks")).toBe(1);
		request.onPrologue();
		request.onResponseBytes(30);
		request.onResponseBytes(12);
		request.onCancel("kill");
		request.onError("publish_response");
		request.onClose();
		expect(await value("dynamo_component_inflight_requests")).toBe(0);
		expect(await value("dynamo_work_handler_pool_active_tasks")).toBe(0);
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
