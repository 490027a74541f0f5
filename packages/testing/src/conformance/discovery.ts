// SPDX-License-Identifier: Apache-2.0
import type { DiscoveryRecord, EndpointRecord } from "@dynamo-ts/protocols/internal";
import { BUCKETS, recordKey } from "@dynamo-ts/protocols/internal";
import type { Discovery, DiscoveryEvent } from "@dynamo-ts/runtime";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { eventually } from "./eventually.js";

/** A discovery store in which several peers can meet. */
export interface DiscoveryWorld {
	/** Another process, as far as the store is concerned. */
	peer(): Promise<Discovery>;
	dispose(): Promise<void>;
}

/** An endpoint record of a peer. */
export function endpointRecord(discovery: Discovery, overrides: Partial<EndpointRecord> = {}): EndpointRecord {
	return {
		type: "Endpoint",
		namespace: "dynamo",
		component: "backend",
		endpoint: "generate",
		instance_id: discovery.instanceId,
		transport: { tcp: `127.0.0.1:4711/${discovery.instanceId.toString(16)}/dynamo/backend/generate` },
		request_plane_codec: "msgpack",
		...overrides,
	};
}

function modelRecord(discovery: Discovery): DiscoveryRecord {
	return {
		type: "Model",
		namespace: "dynamo",
		component: "backend",
		endpoint: "generate",
		instance_id: discovery.instanceId,
		card_json: {
			display_name: "test",
			slug: "test",
			kv_cache_block_size: 16,
			migration_limit: 0,
			model_type: "Chat",
			model_input: "Text",
		},
	};
}

function eventRecords(): DiscoveryRecord[] {
	const endpoint = { namespace: "dynamo", component: "back-end", name: "generate" };
	const scope = { kind: "endpoint" as const, endpoint };
	return [
		{
			type: "EventChannel",
			scope,
			topic: "kv-events",
			instance_id: 18446744073709551615n,
			transport: { kind: "Zmq", config: { endpoint: "tcp://127.0.0.1:5555" } },
		},
		{
			type: "EventSource",
			scope,
			topic: "kv-events",
			publisher_id: 1375310373609454n,
			metadata: {
				kv_state_endpoint: endpoint,
				worker: { worker_id: 18446744073709551615n, dp_rank: 0 },
				publisher_id: 1375310373609454n,
			},
		},
	];
}

/** What every discovery backend must do. `missing`: why this one cannot be tested here. */
export function discoveryConformance(name: string, open: () => Promise<DiscoveryWorld>, missing?: string): void {
	const title = `discovery conformance - ${name}`;
	describe.skipIf(missing !== undefined)(missing === undefined ? title : `${title} [skipped: ${missing}]`, () => {
		let world: DiscoveryWorld;
		let writer: Discovery;
		let reader: Discovery;
		let events: DiscoveryEvent[];

		beforeEach(async () => {
			world = await open();
			writer = await world.peer();
			reader = await world.peer();
			events = [];
		});
		afterEach(async () => {
			await writer.close();
			await reader.close();
			await world.dispose();
		});

		const watchInstances = () => reader.watch("v1/instances", (event) => events.push(event));

		it("peers have different ids of 64 bits", () => {
			expect(writer.instanceId).not.toBe(reader.instanceId);
			expect(writer.instanceId).toBeLessThan(1n << 64n);
		});

		it("a put is seen by another peer's list and watch, and so is its delete", async () => {
			const record = endpointRecord(writer);
			await watchInstances();
			await writer.put(record);
			await eventually(() => events.length === 1, "the put");
			expect(events[0]).toEqual({ type: "put", key: recordKey(record), record });
			expect(await reader.list("v1/instances")).toEqual([record]);
			await writer.delete(record);
			await eventually(() => events.length === 2, "the delete");
			expect(events[1]).toEqual({ type: "delete", key: recordKey(record) });
			expect(await reader.list("v1/instances")).toEqual([]);
		});

		it("a watch tells what is there before it resolves", async () => {
			const record = endpointRecord(writer);
			await writer.put(record);
			await watchInstances();
			expect(events).toEqual([{ type: "put", key: recordKey(record), record }]);
		});

		it("a put of a known key replaces the record", async () => {
			await watchInstances();
			await writer.put(endpointRecord(writer));
			await eventually(() => events.length === 1, "the first put");
			const moved = endpointRecord(writer, { transport: { tcp: "127.0.0.1:4712/x" } });
			await writer.put(moved);
			await eventually(() => events.length === 2, "the second put");
			expect(events[1]).toEqual({ type: "put", key: recordKey(moved), record: moved });
			expect(await reader.list("v1/instances")).toEqual([moved]);
		});

		it("each kind of record comes back from its own bucket with all digits of its ids", async () => {
			const records = [endpointRecord(writer), modelRecord(writer), ...eventRecords()];
			for (const record of records) await writer.put(record);
			for (const [index, bucket] of BUCKETS.entries()) expect(await reader.list(bucket)).toEqual([records[index]]);
		});

		it("names with characters that file systems and keys treat specially survive", async () => {
			const record = endpointRecord(writer, { namespace: "a.b-c_d%2F", component: "Überbau", endpoint: "x..y" });
			await writer.put(record);
			expect(await reader.list("v1/instances")).toEqual([record]);
			await watchInstances();
			await writer.delete(record);
			await eventually(() => events.length === 2, "the delete");
			expect(events[1]).toEqual({ type: "delete", key: recordKey(record) });
		});

		it("a burst of records arrives whole", async () => {
			await watchInstances();
			const records = Array.from({ length: 60 }, (_, i) => endpointRecord(writer, { endpoint: `generate${i}` }));
			await Promise.all(records.map((record) => writer.put(record)));
			await eventually(() => events.length === 60, "all puts");
			expect(new Set(events.map((event) => event.key))).toEqual(new Set(records.map(recordKey)));
			await Promise.all(records.slice(0, 30).map((record) => writer.delete(record)));
			await eventually(() => events.length === 90, "all deletes");
			expect(await reader.list("v1/instances")).toHaveLength(30);
		});

		it("close removes the records of this peer and no others", async () => {
			const other = endpointRecord(reader);
			await reader.put(other);
			await writer.put(endpointRecord(writer));
			await writer.put(modelRecord(writer));
			await writer.close();
			expect(await reader.list("v1/instances")).toEqual([other]);
			expect(await reader.list("v1/mdc")).toEqual([]);
		});

		it("deleteOwn removes the records and leaves watches running", async () => {
			await watchInstances();
			await reader.put(endpointRecord(reader));
			await eventually(() => events.length === 1, "the put");
			await reader.deleteOwn();
			await eventually(() => events.length === 2, "the delete");
			await writer.put(endpointRecord(writer));
			await eventually(() => events.length === 3, "a put of another peer");
		});

		it("a closed watch tells nothing more", async () => {
			const watch = await watchInstances();
			const later: DiscoveryEvent[] = [];
			await reader.watch("v1/instances", (event) => later.push(event));
			watch.close();
			await writer.put(endpointRecord(writer));
			await eventually(() => later.length === 1, "the put at the other watch");
			expect(events).toEqual([]);
		});

		it("deleting what is not there, and closing twice, is no error", async () => {
			await writer.delete(endpointRecord(writer));
			await writer.close();
			await writer.close();
		});
	});
}
