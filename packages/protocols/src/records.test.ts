// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from "vitest";
import { BUCKETS } from "./discovery-records.js";
import { isDynamoError } from "./dynamo-error.js";
import { parseJson, stringifyJson } from "./json.js";
import { fileNameOfKey, keyOfFileName, parseKey, recordKey } from "./keys.js";
import { parseDiscoveryRecord, parseStoredRecord } from "./records.js";
import { fixture, fixtureLines, fixtureNames } from "./testing/fixtures.js";

type Json = Record<string, unknown>;

const stored = BUCKETS.flatMap((bucket) =>
	fixtureNames(`wire/file-kv-sample/${bucket}`).map((fileName) => ({
		bucket,
		fileName,
		text: fixture(`wire/file-kv-sample/${bucket}/${encodeURIComponent(fileName)}`).toString("utf8"),
	})),
);

describe("a file store of Dynamo 1.6.1", () => {
	it("is not empty", () => expect(stored).toHaveLength(12));

	it.each(stored)("$bucket/$fileName parses, has that key, and is written back byte for byte", (file) => {
		const record = parseStoredRecord(file.bucket, file.text);
		expect(fileNameOfKey(recordKey(record))).toEqual({ bucket: file.bucket, fileName: file.fileName });
		expect(keyOfFileName(file.bucket, file.fileName)).toBe(recordKey(record));
		expect(parseKey(recordKey(record))?.bucket).toBe(file.bucket);
		expect(stringifyJson(record)).toBe(file.text);
	});

	it("refuses a record in another bucket", () => {
		const instance = stored.find((file) => file.bucket === "v1/instances");
		expect(() => parseStoredRecord("v1/mdc", instance?.text ?? "")).toThrow("does not belong into v1/mdc");
	});
});

describe.each(["wire/etcd-dump-agg.json", "wire/etcd-dump-disagg-bootstrap.json"])("etcd dump %s", (path) => {
	const entries = JSON.parse(fixture(path).toString("utf8")) as { key: string; value_raw: string }[];
	it.each(entries)("$key", ({ key, value_raw: text }) => {
		const record = parseDiscoveryRecord(parseJson(text));
		expect(recordKey(record)).toBe(key);
		expect(stringifyJson(record)).toBe(text);
	});
});

/** A copy without the member at a dotted path, or with another value there. */
function changed(record: Json, path: string, value?: unknown): Json {
	const copy = structuredClone(record);
	const steps = path.split(".");
	const last = steps.pop() as string;
	const parent = steps.reduce<Json>((object, step) => object[step] as Json, copy);
	if (value === undefined) delete parent[last];
	else parent[last] = value;
	return copy;
}

const accepted = (record: unknown): boolean => {
	try {
		parseDiscoveryRecord(record);
		return true;
	} catch (error) {
		if (isDynamoError(error)) return false;
		throw error;
	}
};

const sample = (bucket: string, part: string): Json =>
	parseJson(stored.find((file) => file.bucket === bucket && file.fileName.includes(part))?.text ?? "") as Json;

const ENDPOINT = sample("v1/instances", "tsback");
const MODEL = parseJson(fixture("wire/card-agg.json")) as Json;
const TEXT_MODEL = changed(MODEL, "card_json.model_input", "Text");

describe("Endpoint records that Dynamo's frontend took or refused", () => {
	const changes: Record<string, [string, unknown?]> = {
		"instance_id as string": ["instance_id", "5"],
		"+extra field": ["extra", 1],
		"device_type cpu": ["device_type", "cpu"],
		"device_type bogus": ["device_type", "bogus"],
		"codec json": ["request_plane_codec", "json"],
		"codec bogus": ["request_plane_codec", "bogus"],
	};
	const cases = fixtureLines<{ obj: string; what: string; accepted?: boolean }>("wire/required-fields.jsonl").filter(
		(line) => line.obj === "Endpoint",
	);
	it.each(cases)("$what: $accepted", ({ what, accepted: expected }) => {
		const change = what === "baseline" ? undefined : (changes[what] ?? [what.slice(1)]);
		expect(accepted(change === undefined ? ENDPOINT : changed(ENDPOINT, change[0], change[1]))).toBe(expected);
	});
});

describe("Model records that Dynamo's frontend took or refused", () => {
	/** Not listed for reasons outside of the record: files, a missing instance or prefill worker, an engine for it. */
	const OTHER_REASON =
		/^no instance$|^-card_json\.(model_info|tokenizer|prompt_formatter)$|^model_type="?(Prefill|TensorBased)"?$|^model_input=Tensor$|^needs=?.?\[\["prefill"\]\]/;
	const changes: Record<string, [string, unknown]> = {
		"+unknown card field": ["card_json.zzz", 1],
		"slug uppercase": ["card_json.slug", "Smol"],
		"slug differs": ["card_json.slug", "other"],
		"display_name with slash": ["card_json.display_name", "org/smol"],
		aliases: ["card_json.aliases", ["a"]],
		"needs null": ["card_json.needs", null],
		"runtime_config null": ["card_json.runtime_config", null],
		"card_json as string": ["card_json", "{}"],
		"structural_tag_mode bogus": ["card_json.runtime_config.structural_tag_mode", "bogus"],
		"+model_suffix null": ["model_suffix", null],
		'+model_suffix ""': ["model_suffix", ""],
		"kv_cache_block_size 0": ["card_json.kv_cache_block_size", 0],
		"model_type Chat|Embedding": ["card_json.model_type", "Chat|Embedding"],
		"model_type Pooling": ["card_json.model_type", "Pooling"],
		'model_type ""': ["card_json.model_type", ""],
		"unknown runtime_config key": ["card_json.runtime_config.zzz", 1],
	};
	/** `name=value` cases: the value is JSON, or a bare word. */
	function assignment(what: string): [string, unknown] {
		const [field, text] = [what.slice(0, what.indexOf("=")), what.slice(what.indexOf("=") + 1)];
		try {
			return [`card_json.${field}`, JSON.parse(text)];
		} catch {
			return [`card_json.${field}`, text];
		}
	}
	function change(what: string): [string, unknown?] | undefined {
		if (what.startsWith("baseline")) return undefined;
		if (what.startsWith("-")) return [what.slice(1).replace(/^runtime_config/, "card_json.runtime_config")];
		return changes[what] ?? assignment(what);
	}
	const lines = [
		...fixtureLines<{ obj?: string; what?: string; listed?: boolean }>("wire/required-fields.jsonl")
			.filter((line) => line.obj === "Model")
			.map((line) => ({ ...line, base: MODEL })),
		...fixtureLines<{ obj?: string; what?: string; listed?: boolean }>("wire/required-fields-card.jsonl").map(
			(line) => ({
				...line,
				base: TEXT_MODEL,
			}),
		),
	];
	const cases = lines.flatMap(({ what, listed, base }) =>
		what === undefined || listed === undefined || OTHER_REASON.test(what) ? [] : [{ what, listed, base }],
	);
	it("are many", () => expect(cases.length).toBeGreaterThan(75));
	it.each(cases)("$what: $listed", ({ what, listed, base }) => {
		const [path, value] = change(what) ?? [];
		expect(accepted(path === undefined ? base : changed(base, path, value))).toBe(listed);
	});
});

describe("event records without one of their members", () => {
	const BASE: Record<string, Json> = {
		EventChannel: sample("v1/event_channels", "kv%2Devents"),
		EventSource: sample("v1/event_sources", "kv%2Devents"),
	};
	const cases = fixtureLines<{ obj?: string; removed?: string; warning?: string }>(
		"wire/required-fields-card.jsonl",
	).flatMap(({ obj = "", removed, warning = "" }) => {
		const kind = { ch: "EventChannel", src: "EventSource" }[obj] ?? obj;
		return removed === undefined ? [] : [{ kind, removed, warning }];
	});
	it("are many", () => expect(cases.length).toBe(40));
	it.each(cases)("$kind without $removed", ({ kind, removed, warning }) => {
		const record = changed(BASE[kind] as Json, removed);
		// "inconsistent attribution": the record parses, the KV router alone wants a recovery target.
		const parses = warning.includes("inconsistent attribution");
		expect(accepted(record)).toBe(parses);
		if (parses) return;
		const missing = /missing field (`[^`]+`)/.exec(warning)?.[1] ?? "exactly one member";
		expect(() => parseDiscoveryRecord(record)).toThrow(missing);
	});

	it("are refused when their ids disagree", () => {
		const source = BASE.EventSource as Json;
		expect(() => parseDiscoveryRecord(changed(source, "metadata.publisher_id", 5))).toThrow("publisher_id differs");
		expect(() => parseDiscoveryRecord(changed(source, "metadata.worker.worker_id", 5))).toThrow(
			"instance_id differs from worker.worker_id",
		);
	});

	it("may have other scopes and transports", () => {
		const channel = BASE.EventChannel as Json;
		for (const [path, value] of [
			["scope", { kind: "namespace", name: "n" }],
			["scope", { kind: "component", namespace: "n", component: "c" }],
			["transport", { kind: "Nats", config: { subject_prefix: "p" } }],
			["transport", { kind: "ZmqBroker", config: { xsub_endpoints: ["a"], xpub_endpoints: [] } }],
		] as [string, unknown][]) {
			const record = parseDiscoveryRecord(changed(channel, path, value));
			expect(record).toMatchObject({ [path]: value });
		}
		expect(accepted(changed(channel, "transport", { kind: "Pigeon", config: {} }))).toBe(false);
	});
});

describe("errors of records", () => {
	it.each([
		[null, "discovery record: must be an object, got null"],
		[[], "discovery record: must be an object, got an array"],
		[{ type: "Other" }, "discovery record: type must be one of Endpoint, Model, EventChannel, EventSource"],
		[changed(ENDPOINT, "instance_id", -1), "Endpoint record: instance_id must be an unsigned 64-bit integer, got -1"],
		[changed(ENDPOINT, "transport", { udp: "x" }), 'Endpoint record: transport: knows tcp and nats_tcp, not "udp"'],
	])("say which member is at fault", (record, message) => {
		expect(() => parseDiscoveryRecord(record)).toThrow(message);
	});
});
