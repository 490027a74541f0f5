// SPDX-License-Identifier: Apache-2.0
import type { Bucket, DiscoveryRecord, EndpointId, EventScope } from "./discovery-records.js";
import { BUCKETS } from "./discovery-records.js";
import { U64_MAX } from "./json.js";

/** An id as it stands in keys and addresses: lowercase hex, no padding, no `0x`. */
export function idHex(id: bigint): string {
	return id.toString(16);
}

/** Reads {@link idHex}; undefined when the text is not such an id. */
export function parseIdHex(text: string): bigint | undefined {
	if (!/^[0-9a-f]{1,16}$/.test(text)) return undefined;
	const id = BigInt(`0x${text}`);
	return id <= U64_MAX ? id : undefined;
}

/** `{id:x}/{ns}/{component}/{endpoint}`: the path of a TCP address, and the routing key on the connection. */
export function endpointPath(id: bigint, endpoint: EndpointId): string {
	return `${idHex(id)}/${endpoint.namespace}/${endpoint.component}/${endpoint.name}`;
}

/** Splits a TCP address `host:port/{path}` at its first slash; undefined when there is none or no port. */
export function splitTcpAddress(address: string): { host: string; port: number; path: string } | undefined {
	const slash = address.indexOf("/");
	if (slash < 0) return undefined;
	const match = /^(?:\[([^\]]+)\]|([^:]+)):(\d{1,5})$/.exec(address.slice(0, slash));
	if (match === null) return undefined;
	const port = Number(match[3]);
	if (port > 65_535) return undefined;
	return { host: (match[1] ?? match[2]) as string, port, path: address.slice(slash + 1) };
}

const utf8 = (text: string): Buffer => Buffer.from(text, "utf8");

function percentEncode(text: string, keep: (byte: number) => boolean): string {
	let out = "";
	for (const byte of utf8(text)) {
		out += keep(byte) ? String.fromCharCode(byte) : `%${byte.toString(16).toUpperCase().padStart(2, "0")}`;
	}
	return out;
}

const isAlphanumeric = (byte: number): boolean =>
	(byte >= 0x30 && byte <= 0x39) || (byte >= 0x41 && byte <= 0x5a) || (byte >= 0x61 && byte <= 0x7a);

/** One segment of an event key: all but ASCII alphanumerics, `-` and `_` percent-encoded. */
export function encodeEventSegment(text: string): string {
	return percentEncode(text, (byte) => isAlphanumeric(byte) || byte === 0x2d || byte === 0x5f);
}

/** `namespace/{ns}[/component/{c}[/endpoint/{e}]]`, segments encoded. */
export function eventScopePath(scope: EventScope): string {
	switch (scope.kind) {
		case "namespace":
			return `namespace/${encodeEventSegment(scope.name)}`;
		case "component":
			return `namespace/${encodeEventSegment(scope.namespace)}/component/${encodeEventSegment(scope.component)}`;
		case "endpoint": {
			const { namespace, component, name } = scope.endpoint;
			return `${eventScopePath({ kind: "component", namespace, component })}/endpoint/${encodeEventSegment(name)}`;
		}
	}
}

/** Key of the records that a publisher writes under a scope and a topic. */
export function eventKey(
	bucket: "v1/event_channels" | "v1/event_sources",
	scope: EventScope,
	topic: string,
	publisher: bigint,
): string {
	return `${bucket}/${eventScopePath(scope)}/topic/${encodeEventSegment(topic)}/${idHex(publisher)}`;
}

/** The store key of a record, the same in every backend: `v1/instances/{ns}/{component}/{endpoint}/{id:x}` and so on. */
export function recordKey(record: DiscoveryRecord): string {
	switch (record.type) {
		case "Endpoint":
			return `v1/instances/${record.namespace}/${record.component}/${record.endpoint}/${idHex(record.instance_id)}`;
		case "Model": {
			const key = `v1/mdc/${record.namespace}/${record.component}/${record.endpoint}/${idHex(record.instance_id)}`;
			return record.model_suffix ? `${key}/${record.model_suffix}` : key;
		}
		case "EventChannel":
			return eventKey("v1/event_channels", record.scope, record.topic, record.instance_id);
		case "EventSource":
			return eventKey("v1/event_sources", record.scope, record.topic, record.publisher_id);
	}
}

/** What a key says by itself; enough to know which record a deletion meant. */
export type ParsedKey =
	| { bucket: "v1/instances"; endpoint: EndpointId; id: bigint }
	| { bucket: "v1/mdc"; endpoint: EndpointId; id: bigint; modelSuffix?: string }
	| { bucket: "v1/event_channels" | "v1/event_sources"; scope: EventScope; topic: string; id: bigint };

/** Reads a store key; undefined when it does not have the shape of its bucket. */
export function parseKey(key: string): ParsedKey | undefined {
	const bucket = bucketOfKey(key);
	if (bucket === undefined) return undefined;
	const segments = key.slice(bucket.length + 1).split("/");
	if (segments.some((segment) => segment === "")) return undefined;
	if (bucket === "v1/instances" || bucket === "v1/mdc") {
		const [namespace, component, name, hex, ...rest] = segments;
		if (namespace === undefined || component === undefined || name === undefined || hex === undefined) return undefined;
		const id = parseIdHex(hex);
		if (id === undefined) return undefined;
		const endpoint = { namespace, component, name };
		if (rest.length === 0) return { bucket, endpoint, id };
		return bucket === "v1/mdc" ? { bucket, endpoint, id, modelSuffix: rest.join("/") } : undefined;
	}
	const id = parseIdHex(segments.at(-1) as string);
	const topicAt = segments.length - 3;
	if (id === undefined || topicAt < 2 || segments[topicAt] !== "topic") return undefined;
	const topic = decodePercent(segments[topicAt + 1] as string);
	const scope = parseScope(segments.slice(0, topicAt));
	return topic === undefined || scope === undefined ? undefined : { bucket, scope, topic, id };
}

function parseScope(segments: string[]): EventScope | undefined {
	const words = ["namespace", "component", "endpoint"];
	if (segments.length % 2 !== 0 || segments.length > 6) return undefined;
	const names: string[] = [];
	for (let i = 0; i < segments.length; i += 2) {
		const name = decodePercent(segments[i + 1] as string);
		if (segments[i] !== words[i / 2] || name === undefined) return undefined;
		names.push(name);
	}
	const [namespace, component, name] = names as [string, string | undefined, string | undefined];
	if (component === undefined) return { kind: "namespace", name: namespace };
	if (name === undefined) return { kind: "component", namespace, component };
	return { kind: "endpoint", endpoint: { namespace, component, name } };
}

function decodePercent(text: string): string | undefined {
	try {
		return decodeURIComponent(text);
	} catch {
		return undefined;
	}
}

/** The bucket that a key belongs to. */
export function bucketOfKey(key: string): Bucket | undefined {
	return BUCKETS.find((bucket) => key.length > bucket.length && key[bucket.length] === "/" && key.startsWith(bucket));
}

/**
 * Where the file backend keeps a key: the bucket's directory below the root, and a file name in which every byte that
 * is not an ASCII letter or digit is percent-encoded with uppercase hex.
 *
 * @throws RangeError when the key belongs to no bucket or has no tail.
 */
export function fileNameOfKey(key: string): { bucket: Bucket; fileName: string } {
	const bucket = bucketOfKey(key);
	const tail = bucket === undefined ? "" : key.slice(bucket.length + 1);
	if (bucket === undefined || tail === "") {
		throw new RangeError(`key ${JSON.stringify(key)} belongs to none of the buckets ${BUCKETS.join(", ")}`);
	}
	return { bucket, fileName: percentEncode(tail, isAlphanumeric) };
}

/** Reverses {@link fileNameOfKey}; undefined for a name that is not percent-encoded text (a `.tmp_` file, say). */
export function keyOfFileName(bucket: Bucket, fileName: string): string | undefined {
	if (fileName === "" || !/^(?:[A-Za-z0-9]|%[0-9A-Fa-f]{2})+$/.test(fileName)) return undefined;
	const tail = decodePercent(fileName);
	return tail === undefined ? undefined : `${bucket}/${tail}`;
}
