// SPDX-License-Identifier: Apache-2.0
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { Bucket, EventScope } from "./discovery-records.js";
import { BUCKETS } from "./discovery-records.js";
import { U64_MAX } from "./json.js";
import {
	endpointPath,
	eventKey,
	fileNameOfKey,
	idHex,
	keyOfFileName,
	parseIdHex,
	parseKey,
	splitTcpAddress,
} from "./keys.js";

const name = fc.string({ minLength: 1 }).filter((text) => !text.includes("/"));
const id = fc.bigInt({ min: 0n, max: U64_MAX });

describe("ids in keys", () => {
	it("are lowercase hex without padding", () => {
		expect(idHex(652045311746837157n)).toBe("90c87c1a0210aa5");
		expect(idHex(0n)).toBe("0");
		expect(endpointPath(0xca7a98ae12f68314n, { namespace: "dynamo", component: "backend", name: "generate" })).toBe(
			"ca7a98ae12f68314/dynamo/backend/generate",
		);
	});

	it("come back", () => {
		fc.assert(fc.property(id, (x) => parseIdHex(idHex(x)) === x));
	});

	it.each(["", "0x1", "FF", "g", "11112222333344445"])("refuse %j", (text) => {
		expect(parseIdHex(text)).toBeUndefined();
	});
});

describe("file names", () => {
	it("escape every byte that is no ASCII letter or digit", () => {
		expect(fileNameOfKey("v1/mdc/a-b/c_d/e.f/1f")).toEqual({
			bucket: "v1/mdc",
			fileName: "a%2Db%2Fc%5Fd%2Fe%2Ef%2F1f",
		});
		expect(fileNameOfKey("v1/instances/é%").fileName).toBe("%C3%A9%25");
	});

	it("come back for any key", () => {
		fc.assert(
			fc.property(
				fc.constantFrom<Bucket>(...BUCKETS),
				fc.string({ minLength: 1, unit: "grapheme" }),
				(bucket, tail) => {
					const key = `${bucket}/${tail}`;
					const { fileName } = fileNameOfKey(key);
					expect(fileName).toMatch(/^(?:[A-Za-z0-9]|%[0-9A-F]{2})+$/);
					expect(keyOfFileName(bucket, fileName)).toBe(key);
				},
			),
		);
	});

	it.each([".tmp_0123456789abcdef", "", "a/b", "%zz", "%C3"])("are not %j", (fileName) => {
		expect(keyOfFileName("v1/mdc", fileName)).toBeUndefined();
	});

	it.each(["v1/other/a", "v1/mdc", "v1/mdc/", "/v1/mdc/a"])("are not made of %j", (key) => {
		expect(() => fileNameOfKey(key)).toThrow(RangeError);
	});
});

describe("event keys", () => {
	const scope: fc.Arbitrary<EventScope> = fc.oneof(
		fc.record({ kind: fc.constant("namespace" as const), name }),
		fc.record({ kind: fc.constant("component" as const), namespace: name, component: name }),
		fc.record({
			kind: fc.constant("endpoint" as const),
			endpoint: fc.record({ namespace: name, component: name, name }),
		}),
	);

	it("encode each segment and come back", () => {
		fc.assert(
			fc.property(scope, name, id, (given, topic, publisher) => {
				const key = eventKey("v1/event_channels", given, topic, publisher);
				expect(parseKey(key)).toEqual({ bucket: "v1/event_channels", scope: given, topic, id: publisher });
			}),
		);
	});

	it("are encoded twice in a file name", () => {
		const key = eventKey("v1/event_sources", { kind: "namespace", name: "my.ns" }, "kv-events", 10n);
		expect(key).toBe("v1/event_sources/namespace/my%2Ens/topic/kv-events/a");
		expect(fileNameOfKey(key).fileName).toBe("namespace%2Fmy%252Ens%2Ftopic%2Fkv%2Devents%2Fa");
	});
});

describe("parseKey", () => {
	const endpoint = { namespace: "ns", component: "c", name: "e" };
	it.each([
		["v1/instances/ns/c/e/ff", { bucket: "v1/instances", endpoint, id: 255n }],
		["v1/mdc/ns/c/e/ff", { bucket: "v1/mdc", endpoint, id: 255n }],
		["v1/mdc/ns/c/e/ff/my-lora", { bucket: "v1/mdc", endpoint, id: 255n, modelSuffix: "my-lora" }],
		["v1/instances/ns/c/e/ff/x", undefined],
		["v1/instances/ns/c/e", undefined],
		["v1/instances/ns/c/e/XY", undefined],
		["v1/instances/ns//e/1", undefined],
		["v1/event_channels/namespace/ns/1", undefined],
		["v1/event_channels/component/ns/topic/t/1", undefined],
		["v1/event_channels/namespace/%C3/topic/t/1", undefined],
		["v2/instances/ns/c/e/1", undefined],
	])("reads %s", (key, parsed) => {
		expect(parseKey(key)).toEqual(parsed);
	});
});

describe("splitTcpAddress", () => {
	it.each([
		["127.0.0.1:45843/90c/d/b/g", { host: "127.0.0.1", port: 45843, path: "90c/d/b/g" }],
		["[::1]:80/x", { host: "::1", port: 80, path: "x" }],
		["worker-1.svc:9/x", { host: "worker-1.svc", port: 9, path: "x" }],
		["127.0.0.1:45843", undefined],
		["127.0.0.1/x", undefined],
		["127.0.0.1:70000/x", undefined],
	])("splits %s", (address, parts) => {
		expect(splitTcpAddress(address)).toEqual(parts);
	});
});
