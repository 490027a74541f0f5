// SPDX-License-Identifier: Apache-2.0
import { parsePrometheus } from "@dynamo-ts/testing/internal";
import { expect, test } from "vitest";
import { createMetricsRegistry } from "../observability/metrics.js";
import { Admission } from "./admission.js";
import { type ActiveResponse, EndpointEntry } from "./endpoint-entry.js";
import type { IngressRequest, RequestObserver } from "./request-plane.js";
import { WorkPool } from "./work-pool.js";

const OBSERVER: RequestObserver = {
	onPrologue() {},
	onResponseBytes() {},
	onError() {},
	onFail() {},
	onCancel() {},
	onClose() {},
};

/** An endpoint behind a pool and an engine's limit; requests are named by numbers. */
function endpointBehind(pool: [number, number], engine: [number, number]) {
	const metrics = createMetricsRegistry({ prefix: "dynamo" });
	const work = new WorkPool(...pool, metrics.level({ prefix: "dynamo_work_handler" }));
	const started: number[] = [];
	const instant = new Set<number>();
	const responses = new Map<number, ActiveResponse & { closed: boolean }>();
	const entry = new EndpointEntry(
		"path",
		({ payload }) => {
			started.push(payload as number);
			if (instant.has(payload as number)) finish(payload as number);
		},
		undefined,
		() => {},
	);
	entry.limit(work, new Admission(...engine, metrics));
	const finish = (id: number) => {
		const response = responses.get(id);
		if (response === undefined || response.closed) return;
		response.closed = true;
		entry.done(response);
	};
	return {
		started,
		finish,
		refusal: () => entry.fullness(0),
		/** @param atOnce the handler ends it before it returns. */
		run(id: number, atOnce = false) {
			if (atOnce) instant.add(id);
			const response = { closed: false } as ActiveResponse & { closed: boolean };
			responses.set(id, response);
			entry.run({ payload: id } as IngressRequest, response, OBSERVER);
		},
		page: async () => parsePrometheus(await metrics.scrape()),
	};
}

test("requests pass the pool, then the engine's limit, and leave both", async () => {
	const endpoint = endpointBehind([3, 2], [2, 9]);
	for (let id = 0; id < 5; id++) {
		expect(endpoint.refusal()).toBeUndefined();
		endpoint.run(id);
	}
	expect(endpoint.refusal()).toMatch("DYN_TCP_WORKER_POOL_SIZE 3");
	expect(endpoint.started).toEqual([0, 1]);
	let page = await endpoint.page();
	expect(page.value("dynamo_work_handler_pool_capacity")).toBe(3);
	expect(page.value("dynamo_work_handler_queue_capacity")).toBe(2);
	expect(page.value("dynamo_work_handler_pool_active_tasks")).toBe(3);
	expect(page.value("dynamo_work_handler_queue_depth")).toBe(2);
	expect(page.value("dynamo_work_handler_enqueue_rejected_total")).toBe(1);
	expect(page.value("dynamo_engine_request")).toBe(2);
	expect(page.value("dynamo_request_queue")).toBe(1);
	// One that waits for the pool goes away, and one that waits for the engine.
	endpoint.finish(4);
	endpoint.finish(2);
	endpoint.finish(0);
	expect(endpoint.started).toEqual([0, 1, 3]);
	endpoint.finish(1);
	endpoint.finish(3);
	endpoint.run(6, true);
	endpoint.run(7, true);
	expect(endpoint.started).toEqual([0, 1, 3, 6, 7]);
	page = await endpoint.page();
	for (const gauge of [
		"work_handler_pool_active_tasks",
		"work_handler_queue_depth",
		"engine_request",
		"request_queue",
	]) {
		expect(page.value(`dynamo_${gauge}`), gauge).toBe(0);
	}
	expect(page.value("dynamo_work_handler_permit_wait_seconds_count")).toBe(1);
});

test("one that ends at once lets in the next that waits", async () => {
	const endpoint = endpointBehind([1, 9], [1, 9]);
	endpoint.run(0);
	for (const id of [1, 2, 3]) endpoint.run(id, id !== 3);
	endpoint.finish(0);
	expect(endpoint.started).toEqual([0, 1, 2, 3]);
	endpoint.finish(3);
	expect((await endpoint.page()).value("dynamo_work_handler_pool_active_tasks")).toBe(0);
});
