// SPDX-License-Identifier: Apache-2.0
// Ids, bodies, readiness and the join, against objects recorded from Dynamo's own processes.
import { readFileSync } from "node:fs";
import { type DiscoveryRecord, parseJson, stringifyJson } from "@dynamo-ts/protocols/internal";
import { beforeEach, describe, expect, it } from "vitest";
import { createLogger } from "../../observability/logging.js";
import type { DiscoveryEvent } from "../discovery.js";
import { kubernetesInstanceId } from "./instance-id.js";
import { KubeJoin } from "./kube-join.js";
import { ReadyWorkers, readyInPod, readyInSlice } from "./ready-pods.js";
import { readWorkerMetadata, workerMetadataBody } from "./worker-metadata.js";

// biome-ignore lint/suspicious/noExplicitAny: recorded JSON
const fixture = (name: string): any =>
	parseJson(readFileSync(new URL(`../../../fixtures/k8s/${name}.json`, import.meta.url)));

describe("instance ids", () => {
	const { vectors, computed_only } = fixture("instance-id-vectors");
	it.each([...vectors, ...computed_only] as { cr_name: string; hex: string; decimal: string }[])(
		"of $cr_name is $hex",
		({ cr_name, hex, decimal }) => {
			expect(kubernetesInstanceId(cr_name).toString(16)).toBe(hex);
			expect(kubernetesInstanceId(cr_name)).toBe(BigInt(decimal));
		},
	);
});

describe("the custom resource of a worker", () => {
	it.each(["first", "full", "after-sigterm"])("is written as Dynamo writes it: %s", (name) => {
		const { body } = fixture(`dwm-apply-${name}`);
		const records = new Map(readWorkerMetadata(body).map(({ key, record }) => [key, record]));
		const [owner] = body.metadata.ownerReferences;
		const identity = {
			mode: "pod" as const,
			podName: owner.name,
			podUid: owner.uid,
			namespace: "prod",
			resourceName: body.metadata.name,
		};
		expect(parseJson(workerMetadataBody(identity, records))).toEqual(body);
	});

	it("of a container other than main names the pod as an owner that does not control it", () => {
		const identity = {
			mode: "container",
			podName: "p",
			podUid: "u",
			namespace: "n",
			resourceName: "p-engine",
		} as const;
		expect(JSON.parse(workerMetadataBody(identity, new Map())).metadata).toEqual({
			name: "p-engine",
			ownerReferences: [
				{ apiVersion: "v1", kind: "Pod", name: "p", uid: "u", controller: false, blockOwnerDeletion: false },
			],
		});
	});

	it("may lack maps or have them null, but not data", () => {
		expect(readWorkerMetadata({ spec: { data: {} } })).toEqual([]);
		expect(readWorkerMetadata({ spec: { data: { endpoints: null, model_cards: {} } } })).toEqual([]);
		expect(() => readWorkerMetadata({ spec: { data: null } })).toThrow("spec.data");
		expect(() => readWorkerMetadata({})).toThrow("spec.data");
	});

	it("may have event channels of Dynamo 1.2 and any keys, but no record in a wrong map", () => {
		const transport = { kind: "Zmq", config: { endpoint: "tcp://127.0.0.1:1" } };
		const channel = { type: "EventChannel", namespace: "n", component: "c", topic: "t", instance_id: 5, transport };
		const [record] = readWorkerMetadata({ spec: { data: { event_channels: { anything: channel } } } });
		expect(record?.key).toBe("v1/event_channels/namespace/n/component/c/topic/t/5");
		expect(() => readWorkerMetadata({ spec: { data: { endpoints: { anything: channel } } } })).toThrow("endpoints");
	});

	it("is refused when an id is a float", () => {
		const { body } = fixture("dwm-apply-full");
		const text = stringifyJson(body).replace(/"instance_id":\d+/, '"instance_id":12345.5');
		expect(() => readWorkerMetadata(parseJson(text) as Record<string, unknown>)).toThrow(/instance_id/);
	});
});

describe("readiness", () => {
	it("as recorded", () => {
		expect(readyInSlice(fixture("endpointslice-ready"))).toEqual([
			{ resourceName: "mock-worker-1", uid: "33333333-3333-4333-8333-333333333333" },
		]);
		expect(readyInPod(fixture("pod-ready"))).toEqual([
			{ resourceName: "multi-0-engine-0", uid: "55555555-5555-4555-8555-555555555555" },
		]);
	});

	it.each([
		[{ conditions: { ready: true }, targetRef: { name: "a", uid: "u" } }, 1],
		[{ conditions: { ready: true, serving: false, terminating: true }, targetRef: { name: "a", uid: "u" } }, 1],
		[{ conditions: { ready: false }, targetRef: { name: "a", uid: "u" } }, 0],
		[{ conditions: { ready: null }, targetRef: { name: "a", uid: "u" } }, 0],
		[{ conditions: {}, targetRef: { name: "a", uid: "u" } }, 0],
		[{ targetRef: { name: "a", uid: "u" } }, 0],
		[{ conditions: { ready: true }, targetRef: { name: "", uid: "u" } }, 0],
		[{ conditions: { ready: true }, targetRef: { name: "a", uid: "" } }, 0],
		[{ conditions: { ready: true }, targetRef: { name: "a" } }, 0],
		[{ conditions: { ready: true } }, 0],
		[null, 0],
	])("of an endpoint %j", (endpoint, count) => {
		expect(readyInSlice({ endpoints: [endpoint] })).toHaveLength(count);
	});

	it("counts a pod in two slices until the last one goes, and nobody while two pods claim a name", () => {
		const workers = new ReadyWorkers();
		const [one, other] = [
			{ resourceName: "a", uid: "1" },
			{ resourceName: "a", uid: "2" },
		];
		expect([...workers.set("x", [one])]).toEqual(["a"]);
		workers.set("y", [one]);
		workers.set("x", []);
		expect(workers.uid("a")).toBe("1");
		workers.set("x", [other]);
		expect(workers.uid("a")).toBeUndefined();
		workers.set("y", []);
		expect(workers.uid("a")).toBe("2");
		workers.set("x", []);
		expect(workers.uid("a")).toBeUndefined();
	});
});

describe("what is visible", () => {
	const POD = { resourceName: "mock-worker-1", uid: "33333333-3333-4333-8333-333333333333" };
	const full = () => fixture("dwm-apply-full").response.body;
	let join: KubeJoin;
	let events: DiscoveryEvent[];
	let lines: string[];

	beforeEach(() => {
		lines = [];
		const log = createLogger({ filter: "warn", format: "readable", ansi: false, localTime: false }, "test", (line) =>
			lines.push(line),
		);
		join = new KubeJoin(log);
		events = [];
		for (const view of join.views.values()) view.watch((event) => events.push(event));
	});
	const visible = (): DiscoveryRecord[] => [...join.views.values()].flatMap((view) => view.records());

	it("all eight records, once the pod is ready and owns the resource, in either order", () => {
		join.setResource("mock-worker-1", full());
		expect(events).toEqual([]);
		join.setReady("slice", [POD]);
		expect(visible()).toHaveLength(8);
		join.setReady("slice", []);
		expect(visible()).toEqual([]);
		expect(events.map((event) => event.type)).toEqual([...Array(8).fill("put"), ...Array(8).fill("delete")]);
		join.setReady("slice", [POD]);
		join.removeResource("mock-worker-1");
		expect(visible()).toEqual([]);
	});

	it("nothing of a pod with another uid, or of a resource that no pod owns", () => {
		join.setReady("slice", [{ ...POD, uid: "another" }]);
		join.setResource("mock-worker-1", full());
		const orphan = full();
		orphan.metadata.ownerReferences[0].kind = "ReplicaSet";
		join.setReady("slice", [POD]);
		expect(visible()).toHaveLength(8);
		join.setResource("mock-worker-1", orphan);
		expect(visible()).toEqual([]);
	});

	it("only what changed is told", () => {
		join.setReady("slice", [POD]);
		join.setResource("mock-worker-1", full());
		events.length = 0;
		const moved = full();
		const [key] = Object.keys(moved.spec.data.endpoints);
		moved.spec.data.endpoints[key as string].transport = { tcp: "127.0.0.1:1/x" };
		join.setResource("mock-worker-1", moved);
		expect(events.map((event) => event.type)).toEqual(["put"]);
		join.setResource("mock-worker-1", moved);
		expect(events).toHaveLength(1);
	});

	it("one record that cannot be read keeps the last good content, unless the resource is another one", () => {
		join.setReady("slice", [POD]);
		join.setResource("mock-worker-1", full());
		events.length = 0;
		const broken = full();
		broken.spec.data.endpoints.extra = { type: "Endpoint" };
		join.setResource("mock-worker-1", broken);
		expect(events).toEqual([]);
		expect(lines.join()).toContain("Failed to deserialize metadata from DynamoWorkerMetadata CR");
		broken.metadata.uid = "another";
		join.setResource("mock-worker-1", broken);
		expect(visible()).toEqual([]);
		join.setResource("mock-worker-1", full());
		expect(visible()).toHaveLength(8);
	});

	it("a record that two resources claim stays with the first", () => {
		const second = full();
		second.metadata.ownerReferences[0].uid = "u2";
		join.setReady("slice", [POD, { resourceName: "other", uid: "u2" }]);
		join.setResource("mock-worker-1", full());
		join.setResource("other", second);
		join.removeResource("other");
		expect(visible()).toHaveLength(8);
	});
});
