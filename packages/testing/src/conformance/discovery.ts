// SPDX-License-Identifier: Apache-2.0
import { join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import type { Bucket, DiscoveryRecord, EndpointRecord } from "@dynamo-ts/protocols/internal";
import { BUCKETS, recordKey } from "@dynamo-ts/protocols/internal";
import type { Discovery, DiscoveryEvent } from "@dynamo-ts/runtime";
import { afterAll, afterEach, beforeEach, describe, expect, it } from "vitest";
import { Child, until } from "../child-process.js";
import { titled } from "../found.js";
import { PROJECT_ROOT } from "../own-processes.js";

/** A discovery store in which several peers can meet. */
export interface DiscoveryWorld {
	/** Another process, as far as the store is concerned. */
	peer(): Promise<Discovery>;
	/** Where ids of publishers have fewer than 64 bits. */
	readonly largestPublisherId?: bigint;
	/** Settings with which a real process joins; absent where no other process can. */
	readonly env?: Record<string, string>;
	/** What the world's keepers do after such a process was killed, where the store does not notice by itself. */
	notice?(): void;
	/** Takes the store away and brings it back, with what it held; absent where that cannot happen. */
	readonly outage?: { begin(): Promise<void>; end(): Promise<void> };
	dispose(): Promise<void>;
}

export interface DiscoveryConformanceOptions {
	/** Why this backend cannot be tested here. */
	readonly missing?: string;
	/** After the last test. */
	readonly finish?: () => Promise<void>;
}

/** A process that puts an endpoint record and stays. */
const PROCESS = `
	const { DistributedRuntime } = await import(process.env.BUILT);
	const runtime = await DistributedRuntime.create();
	const { discovery } = runtime;
	await discovery.put({
		type: "Endpoint", namespace: "dynamo", component: "backend", endpoint: "generate", instance_id: discovery.instanceId,
		transport: { tcp: "127.0.0.1:4711/x" }, request_plane_codec: "msgpack",
	});
	console.log("ready");
	setInterval(() => {}, 1000);
`;

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

function portOf(event: DiscoveryEvent | undefined): number | undefined {
	if (event?.type !== "put" || event.record.type !== "Endpoint" || !("tcp" in event.record.transport)) return undefined;
	return Number(/:(\d+)/.exec(event.record.transport.tcp)?.[1]);
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

function eventRecords(publisher: bigint): DiscoveryRecord[] {
	const endpoint = { namespace: "dynamo", component: "back-end", name: "generate" };
	const scope = { kind: "endpoint" as const, endpoint };
	return [
		{
			type: "EventChannel",
			scope,
			topic: "kv-events",
			instance_id: publisher,
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

/** What every discovery backend must do. */
export function discoveryConformance(
	name: string,
	open: () => Promise<DiscoveryWorld>,
	{ missing = "", finish }: DiscoveryConformanceOptions = {},
): void {
	describe.skipIf(missing)(titled(`discovery conformance - ${name}`, missing), () => {
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
		if (finish !== undefined) afterAll(finish);

		/** What the reader lists in the end; a backend that answers from memory may be a moment behind. */
		const listed = async (bucket: Bucket, records: readonly unknown[]) => {
			let list: readonly unknown[] = [];
			const same = async () => {
				list = await reader.list(bucket);
				return isDeepStrictEqual(list, records);
			};
			await until(`${bucket} as it should be`, same, { timeoutMs: 5000 }).catch(() => expect(list).toEqual(records));
		};
		const watchInstances = () => reader.watch("v1/instances", (event) => events.push(event));

		it("peers have different ids of 64 bits", () => {
			expect(writer.instanceId).not.toBe(reader.instanceId);
			expect(writer.instanceId).toBeLessThan(1n << 64n);
		});

		it("a put is seen by another peer's list and watch, and so is its delete", async () => {
			const record = endpointRecord(writer);
			await watchInstances();
			await writer.put(record);
			await until("the put", () => events.length === 1);
			expect(events[0]).toEqual({ type: "put", key: recordKey(record), record });
			await listed("v1/instances", [record]);
			await writer.delete(record);
			await until("the delete", () => events.length === 2);
			expect(events[1]).toEqual({ type: "delete", key: recordKey(record) });
			await listed("v1/instances", []);
		});

		it("a watch tells what is there before it resolves", async () => {
			const record = endpointRecord(writer);
			await writer.put(record);
			await listed("v1/instances", [record]);
			await watchInstances();
			expect(events).toEqual([{ type: "put", key: recordKey(record), record }]);
		});

		it("a put of a known key replaces the record", async () => {
			await watchInstances();
			await writer.put(endpointRecord(writer));
			await until("the first put", () => events.length === 1);
			const moved = endpointRecord(writer, { transport: { tcp: "127.0.0.1:4712/x" } });
			await writer.put(moved);
			await until("the second put", () => events.length === 2);
			expect(events[1]).toEqual({ type: "put", key: recordKey(moved), record: moved });
			await listed("v1/instances", [moved]);
		});

		it("each kind of record comes back from its own bucket with all digits of its ids", async () => {
			const records = [
				endpointRecord(writer),
				modelRecord(writer),
				...eventRecords(world.largestPublisherId ?? 18446744073709551615n),
			];
			for (const record of records) await writer.put(record);
			for (const [index, bucket] of BUCKETS.entries()) await listed(bucket, [records[index]]);
		});

		it("names with characters that file systems and keys treat specially survive", async () => {
			const record = endpointRecord(writer, { namespace: "a.b-c_d%2F", component: "Überbau", endpoint: "x..y" });
			await writer.put(record);
			await listed("v1/instances", [record]);
			await watchInstances();
			await writer.delete(record);
			await until("the delete", () => events.length === 2);
			expect(events[1]).toEqual({ type: "delete", key: recordKey(record) });
		});

		it("a burst of records arrives whole", async () => {
			await watchInstances();
			const records = Array.from({ length: 60 }, (_, i) => endpointRecord(writer, { endpoint: `generate${i}` }));
			await Promise.all(records.map((record) => writer.put(record)));
			await until("all puts", () => events.length === 60);
			expect(new Set(events.map((event) => event.key))).toEqual(new Set(records.map(recordKey)));
			await Promise.all(records.slice(0, 30).map((record) => writer.delete(record)));
			await until("all deletes", () => events.length === 90);
			await until("30 records", async () => (await reader.list("v1/instances")).length === 30);
		});

		it("close removes the records of this peer and no others", async () => {
			const other = endpointRecord(reader);
			await reader.put(other);
			await writer.put(endpointRecord(writer));
			await writer.put(modelRecord(writer));
			await writer.close();
			await listed("v1/instances", [other]);
			await listed("v1/mdc", []);
		});

		it("deleteOwn removes the records and leaves watches running", async () => {
			await watchInstances();
			await reader.put(endpointRecord(reader));
			await until("the put", () => events.length === 1);
			await reader.deleteOwn();
			await until("the delete", () => events.length === 2);
			await writer.put(endpointRecord(writer));
			await until("a put of another peer", () => events.length === 3);
		});

		it("a closed watch tells nothing more", async () => {
			const watch = await watchInstances();
			const later: DiscoveryEvent[] = [];
			await reader.watch("v1/instances", (event) => later.push(event));
			watch.close();
			await writer.put(endpointRecord(writer));
			await until("the put at the other watch", () => later.length === 1);
			expect(events).toEqual([]);
		});

		it("events of a key come in the order of the changes, and the last one is the truth", async () => {
			await watchInstances();
			for (let port = 1; port <= 20; port++) {
				await writer.put(endpointRecord(writer, { transport: { tcp: `127.0.0.1:${port}/x` } }));
				if (port % 5 === 0) await writer.delete(endpointRecord(writer));
			}
			const last = endpointRecord(writer, { transport: { tcp: "127.0.0.1:99/x" } });
			await writer.put(last);
			await until("the last put", () => portOf(events.at(-1)) === 99);
			const ports = events.flatMap((event) => portOf(event) ?? []);
			expect(ports).toEqual([...ports].sort((a, b) => a - b));
			await listed("v1/instances", [last]);
		});

		it("a record that was deleted can be put again", async () => {
			await watchInstances();
			const record = endpointRecord(writer);
			await writer.put(record);
			await until("the first put", () => events.length === 1);
			await writer.delete(record);
			await until("the delete", () => events.length === 2);
			await writer.put(record);
			await until("the second put", () => events.length === 3);
			expect(events.map((event) => event.type)).toEqual(["put", "delete", "put"]);
		});

		it("putting what is there already tells nobody anything", async () => {
			await watchInstances();
			const record = endpointRecord(writer);
			await writer.put(record);
			await writer.put(endpointRecord(writer));
			await writer.put(endpointRecord(writer, { endpoint: "other" }));
			await until("the other put", () => events.some((event) => event.key.includes("/other/")));
			expect(events).toHaveLength(2);
		});

		it("two watches, of one peer and of two, tell the same", async () => {
			const seen: DiscoveryEvent[][] = [[], [], []];
			await reader.watch("v1/instances", (event) => seen[0]?.push(event));
			await writer.put(endpointRecord(writer, { endpoint: "first" }));
			await reader.watch("v1/instances", (event) => seen[1]?.push(event));
			await writer.watch("v1/instances", (event) => seen[2]?.push(event));
			await writer.put(endpointRecord(writer, { endpoint: "second" }));
			await writer.delete(endpointRecord(writer, { endpoint: "first" }));
			await until("the delete everywhere", () => seen.every((list) => list.at(-1)?.type === "delete"));
			for (const list of seen) expect(list).toEqual(seen[0]);
			expect(seen[0]?.map((event) => event.type)).toEqual(["put", "put", "delete"]);
		});

		it("a record of a megabyte survives", async () => {
			const model = modelRecord(writer) as Extract<DiscoveryRecord, { type: "Model" }>;
			const record = { ...model, card_json: { ...model.card_json, source_path: "é".repeat(500_000) } };
			await writer.put(record);
			await listed("v1/mdc", [record]);
		});

		it("the records of a process that is killed go", async ({ skip }) => {
			if (world.env === undefined) return skip("only one process can use this backend");
			await watchInstances();
			const built = join(PROJECT_ROOT, "packages", "runtime", "dist", "index.js");
			const child = new Child(process.execPath, ["--input-type=module", "-e", PROCESS], {
				env: { ...world.env, BUILT: built },
			});
			try {
				await child.waitForOutput(/ready/);
				await until("its record", () => events.length === 1);
			} finally {
				child.kill("SIGKILL");
			}
			world.notice?.();
			await until("its end", () => events.length === 2, { timeoutMs: 30_000 });
			expect(events[1]).toEqual({ type: "delete", key: events[0]?.key });
		});

		it("while the store is away what is known stays, and what was done meanwhile is done in the end", async ({
			skip,
		}) => {
			if (world.outage === undefined) return skip("this backend's store does not go away");
			const [stays, goes, comes] = ["stays", "goes", "comes"].map((endpoint) => endpointRecord(writer, { endpoint }));
			if (stays === undefined || goes === undefined || comes === undefined) throw new Error("three records");
			await writer.put(stays);
			await writer.put(goes);
			await watchInstances();
			await until("both records", () => events.length === 2);
			await world.outage.begin();
			const deleted = writer.delete(goes);
			const put = writer.put(comes);
			const keys = async () => new Set((await reader.list("v1/instances")).map(recordKey));
			expect(await keys()).toEqual(new Set([recordKey(stays), recordKey(goes)]));
			expect(events).toHaveLength(2);
			await world.outage.end();
			await put;
			await deleted;
			await until("the put and the delete", () => events.length === 4);
			expect(
				events
					.slice(2)
					.map((event) => [event.type, event.key])
					.sort(),
			).toEqual([
				["delete", recordKey(goes)],
				["put", recordKey(comes)],
			]);
			expect(await keys()).toEqual(new Set([recordKey(stays), recordKey(comes)]));
		});

		it("deleting what is not there, and closing twice, is no error", async () => {
			await writer.delete(endpointRecord(writer));
			await writer.close();
			await writer.close();
		});
	});
}
