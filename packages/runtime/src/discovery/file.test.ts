// SPDX-License-Identifier: Apache-2.0
import { cp, mkdir, mkdtemp, readdir, readFile, rename, rm, stat, unlink, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import {
	BUCKETS,
	type EndpointRecord,
	parseDiscoveryRecord,
	parseJson,
	recordKey,
	stringifyJson,
} from "@dynamo-ts/protocols/internal";
import { until } from "@dynamo-ts/testing/internal";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { createLogger } from "../observability/logging.js";
import type { DiscoveryEvent } from "./discovery.js";
import { FileDiscovery } from "./file.js";

const SAMPLE = fileURLToPath(new URL("../../fixtures/file-kv-sample", import.meta.url));
const watchFails = vi.hoisted(() => ({ with: undefined as Error | undefined }));

vi.mock("node:fs", async (original) => {
	const fs = await original<typeof import("node:fs")>();
	const watch = (...args: unknown[]) => {
		if (watchFails.with !== undefined) throw watchFails.with;
		return (fs.watch as (...args: unknown[]) => unknown)(...args);
	};
	return { ...fs, watch, default: { ...fs, watch } };
});

function block(ms: number): void {
	Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
}

describe("file discovery", () => {
	let root: string;
	let instances: string;
	let lines: string[];
	let opened: FileDiscovery[];
	let events: DiscoveryEvent[];

	beforeEach(async () => {
		root = await mkdtemp(join(tmpdir(), "file-discovery-"));
		instances = join(root, "v1/instances");
		lines = [];
		opened = [];
		events = [];
	});
	afterEach(async () => {
		watchFails.with = undefined;
		for (const discovery of opened) await discovery.close();
		await rm(root, { recursive: true, force: true });
	});

	const open = async (ttlMs?: number): Promise<FileDiscovery> => {
		const config = { filter: "debug", format: "readable", ansi: false, localTime: false } as const;
		const log = createLogger(config, "test", (line) => lines.push(line));
		const discovery = await FileDiscovery.open({ root, log, ...(ttlMs === undefined ? {} : { ttlMs }) });
		opened.push(discovery);
		return discovery;
	};
	const watch = (discovery: FileDiscovery) => discovery.watch("v1/instances", (event) => events.push(event));
	const record = (id: bigint, tcp = "127.0.0.1:1/x"): EndpointRecord => ({
		type: "Endpoint",
		namespace: "dynamo",
		component: "backend",
		endpoint: "generate",
		instance_id: id,
		transport: { tcp },
	});
	const age = async (path: string, seconds: number) => {
		const then = Date.now() / 1000 - seconds;
		await utimes(path, then, then);
	};

	it("reads a folder that real processes wrote, and writes the same names and bytes", async () => {
		await cp(SAMPLE, root, { recursive: true });
		const writer = await open();
		for (const bucket of BUCKETS) {
			const names = await readdir(join(SAMPLE, bucket));
			for (const name of names) await age(join(root, bucket, name), 0);
			const records = await writer.list(bucket);
			expect(records).toHaveLength(names.length);
			for (const one of records) await writer.put(one);
			expect(new Set(await readdir(join(root, bucket)))).toEqual(new Set(names));
			for (const name of names) {
				const ours = await readFile(join(root, bucket, name), "utf8");
				expect(ours).toBe(await readFile(join(SAMPLE, bucket, name), "utf8"));
			}
		}
	});

	it("leaves out a half-written file with one warning, and takes it once it is whole", async () => {
		const reader = await open();
		const good = record(1n);
		const writer = await open();
		await writer.put(good);
		await watch(reader);
		const path = join(instances, "dynamo%2Fbackend%2Fgenerate%2F2");
		const whole = stringifyJson(record(2n));
		await writeFile(path, whole.slice(0, 40));
		await until("the warning", () => lines.some((line) => line.includes("Failed to parse")));
		await reader.list("v1/instances");
		expect(lines.filter((line) => line.includes("Failed to parse"))).toHaveLength(1);
		expect(await reader.list("v1/instances")).toEqual([good]);
		await writeFile(path, whole);
		await until("the record once whole", () => events.length === 2);
		expect(events[1]).toEqual({ type: "put", key: recordKey(record(2n)), record: record(2n) });
	});

	it("keeps the last good content when a record is replaced by garbage, and tells its deletion", async () => {
		const reader = await open();
		const writer = await open();
		await writer.put(record(1n));
		await watch(reader);
		const path = join(instances, "dynamo%2Fbackend%2Fgenerate%2F1");
		await writeFile(join(root, "garbage"), "{");
		await rename(join(root, "garbage"), path);
		await until("the warning", () => lines.some((line) => line.includes("Failed to parse")));
		expect(await reader.list("v1/instances")).toEqual([record(1n)]);
		await unlink(path);
		await until("the deletion", () => events.length === 2);
		expect(events[1]?.type).toBe("delete");
	});

	it("ignores names that are no keys, and a touch of a file", async () => {
		const reader = await open();
		const writer = await open();
		await writer.put(record(1n));
		await watch(reader);
		await writeFile(join(instances, ".tmp_0123456789abcdef"), "x");
		await writeFile(join(instances, "not a key"), "x");
		await mkdir(join(instances, "folder"));
		await age(join(instances, "dynamo%2Fbackend%2Fgenerate%2F1"), 1);
		await writer.put(record(2n));
		await until("the second record", () => events.length >= 2);
		expect(events.map((event) => event.key)).toEqual([recordKey(record(1n)), recordKey(record(2n))]);
	});

	it("touches its files and removes those that nobody touches", async () => {
		const reader = await open(600);
		const owner = await open(600);
		await watch(reader);
		await owner.put(record(1n));
		const orphan = join(instances, "dynamo%2Fbackend%2Fgenerate%2F2");
		await writeFile(orphan, stringifyJson(record(2n)));
		await until("both records", () => events.length === 2);
		await until("the removal of the orphan", () => events.length === 3);
		expect(events[2]).toEqual({ type: "delete", key: recordKey(record(2n)) });
		await expect(stat(orphan)).rejects.toThrow("ENOENT");
		const before = (await stat(join(instances, "dynamo%2Fbackend%2Fgenerate%2F1"))).mtimeMs;
		await until(
			"a touch",
			async () => (await stat(join(instances, "dynamo%2Fbackend%2Fgenerate%2F1"))).mtimeMs > before,
		);
		expect(await reader.list("v1/instances")).toEqual([record(1n)]);
	});

	it("does not show a stale record that a dead process left", async () => {
		await mkdir(instances, { recursive: true });
		const orphan = join(instances, "dynamo%2Fbackend%2Fgenerate%2F2");
		await writeFile(orphan, stringifyJson(record(2n)));
		await age(orphan, 60);
		const reader = await open();
		await watch(reader);
		expect(events).toEqual([]);
		expect(await reader.list("v1/instances")).toEqual([]);
	});

	it("puts its records again after a stall in which others removed them", async () => {
		const owner = await open(300);
		await owner.put(record(1n));
		const path = join(instances, "dynamo%2Fbackend%2Fgenerate%2F1");
		await unlink(path);
		block(700);
		await until("the file", () =>
			stat(path).then(
				() => true,
				() => false,
			),
		);
		expect(parseDiscoveryRecord(parseJson(await readFile(path, "utf8")))).toEqual(record(1n));
	});

	it("does not remove the files of others right after a stall of its own", async () => {
		const reader = await open(300);
		await watch(reader);
		const other = join(instances, "dynamo%2Fbackend%2Fgenerate%2F2");
		await writeFile(other, stringifyJson(record(2n)));
		await until("the record", () => events.length === 1);
		block(900);
		// The machine was stalled as a whole: the owner touches its file as soon as it can.
		await new Promise((resolve) => setImmediate(resolve));
		await age(other, 0);
		await reader.list("v1/instances");
		expect(events).toHaveLength(1);
	});

	it("finds its way back when the folder is removed and made anew", async () => {
		const owner = await open(300);
		const reader = await open(300);
		await owner.put(record(1n));
		await watch(reader);
		await rm(join(root, "v1"), { recursive: true });
		await until("the deletion", () => events.some((event) => event.type === "delete"));
		await until("the record again", () => events.at(-1)?.type === "put");
		await owner.put(record(3n));
		await until("a new record by notification", () => events.at(-1)?.key === recordKey(record(3n)));
	});

	it("polls with a warning when the folder cannot be watched", async () => {
		watchFails.with = Object.assign(new Error("too many open files"), { code: "EMFILE" });
		const reader = await open();
		const writer = await open();
		await watch(reader);
		expect(lines.some((line) => line.includes("cannot be watched"))).toBe(true);
		await writer.put(record(1n));
		await until("the record by polling", () => events.length === 1);
	});

	it("says which folder cannot be made", async () => {
		await writeFile(join(root, "v1"), "");
		await expect(open()).rejects.toThrow(`discovery folder ${root} (set by DYN_FILE_KV) cannot be made`);
	});

	it("removes its files at once when the process must go", async () => {
		const owner = await open();
		await owner.put(record(1n));
		owner.removeOwnFilesNow();
		expect(await readdir(instances)).toEqual([]);
		expect(dirname(instances)).toBe(join(root, "v1"));
	});
});
