// SPDX-License-Identifier: Apache-2.0
// Reads what an OTLP exporter sends: the parts of OpenTelemetry's protobuf messages that tests look at.

export type OtlpValue = string | number | boolean;

/** Where a signal comes from. */
export interface OtlpOrigin {
	readonly resource: Readonly<Record<string, OtlpValue>>;
	readonly scope: string;
}

export interface OtlpSpan extends OtlpOrigin {
	readonly traceId: string;
	readonly spanId: string;
	/** Empty: none. */
	readonly parentSpanId: string;
	readonly flags: number;
	readonly name: string;
	readonly kind: "UNSPECIFIED" | "INTERNAL" | "SERVER" | "CLIENT";
	/** Nanoseconds since 1970. */
	readonly start: bigint;
	readonly end: bigint;
	readonly attributes: Readonly<Record<string, OtlpValue>>;
	readonly events: readonly OtlpEvent[];
	/** 0: unset, 1: ok, 2: error. */
	readonly status: { readonly code: number; readonly message: string };
}

export interface OtlpEvent {
	readonly name: string;
	readonly time: bigint;
	readonly attributes: Readonly<Record<string, OtlpValue>>;
}

export interface OtlpLog extends OtlpOrigin {
	readonly severity: number;
	readonly body: OtlpValue;
	readonly attributes: Readonly<Record<string, OtlpValue>>;
	readonly traceId: string;
	readonly spanId: string;
	readonly time: bigint;
	readonly observedTime: bigint;
	readonly eventName: string;
}

export interface OtlpMetric extends OtlpOrigin {
	readonly name: string;
	readonly description: string;
	readonly kind: "gauge" | "sum" | "histogram";
	readonly monotonic: boolean;
	readonly points: readonly OtlpPoint[];
}

export interface OtlpPoint {
	readonly attributes: Readonly<Record<string, OtlpValue>>;
	/** Of histograms: the sum. */
	readonly value: number;
	readonly count: number;
	readonly bounds: readonly number[];
	readonly buckets: readonly number[];
}

const KINDS = ["UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT"] as const;

/** Spans of an ExportTraceServiceRequest. */
export function decodeTraces(message: Buffer): OtlpSpan[] {
	return eachItem(message, (span, origin) => {
		const status = new Fields(span.bytes(15));
		return {
			...origin,
			traceId: span.bytes(1).toString("hex"),
			spanId: span.bytes(2).toString("hex"),
			parentSpanId: span.bytes(4).toString("hex"),
			flags: span.number(16),
			name: span.text(5),
			kind: KINDS[span.number(6)] ?? "UNSPECIFIED",
			start: span.fixed(7),
			end: span.fixed(8),
			attributes: attributes(span.all(9)),
			events: span.all(11).map((bytes) => {
				const event = new Fields(bytes);
				return { name: event.text(2), time: event.fixed(1), attributes: attributes(event.all(3)) };
			}),
			status: { code: status.number(3), message: status.text(2) },
		};
	});
}

/** Records of an ExportLogsServiceRequest. */
export function decodeLogs(message: Buffer): OtlpLog[] {
	return eachItem(message, (log, origin) => ({
		...origin,
		severity: log.number(2),
		body: anyValue(log.bytes(5)),
		attributes: attributes(log.all(6)),
		traceId: log.bytes(9).toString("hex"),
		spanId: log.bytes(10).toString("hex"),
		time: log.fixed(1),
		observedTime: log.fixed(11),
		eventName: log.text(12),
	}));
}

/** Metrics of an ExportMetricsServiceRequest. */
export function decodeMetrics(message: Buffer): OtlpMetric[] {
	return eachItem(message, (metric, origin) => {
		const kind = metric.has(9) ? "histogram" : metric.has(7) ? "sum" : "gauge";
		const data = new Fields(metric.bytes({ gauge: 5, sum: 7, histogram: 9 }[kind]));
		return {
			...origin,
			name: metric.text(1),
			description: metric.text(2),
			kind,
			monotonic: kind === "sum" && data.number(3) === 1,
			points: data.all(1).map((bytes) => point(new Fields(bytes), kind === "histogram")),
		};
	});
}

function point(data: Fields, histogram: boolean): OtlpPoint {
	if (!histogram) {
		const value = data.has(4) ? data.double(4) : Number(BigInt.asIntN(64, data.fixed(6)));
		return { attributes: attributes(data.all(7)), value, count: 0, bounds: [], buckets: [] };
	}
	const words = (field: number): Buffer[] => {
		const packed = data.bytes(field);
		return Array.from({ length: packed.length / 8 }, (_, i) => packed.subarray(i * 8, i * 8 + 8));
	};
	return {
		attributes: attributes(data.all(9)),
		value: data.double(5),
		count: Number(data.fixed(4)),
		bounds: words(7).map((word) => word.readDoubleLE()),
		buckets: words(6).map((word) => Number(word.readBigUInt64LE())),
	};
}

/** All three requests nest the same way: resources, scopes, items. */
function eachItem<T>(message: Buffer, read: (item: Fields, origin: OtlpOrigin) => T): T[] {
	const items: T[] = [];
	for (const group of new Fields(message).all(1)) {
		const ofResource = new Fields(group);
		const resource = attributes(new Fields(ofResource.bytes(1)).all(1));
		for (const scoped of ofResource.all(2)) {
			const ofScope = new Fields(scoped);
			const scope = new Fields(ofScope.bytes(1)).text(1);
			for (const item of ofScope.all(2)) items.push(read(new Fields(item), { resource, scope }));
		}
	}
	return items;
}

function attributes(pairs: readonly Buffer[]): Record<string, OtlpValue> {
	return Object.fromEntries(
		pairs.map((bytes) => {
			const pair = new Fields(bytes);
			return [pair.text(1), anyValue(pair.bytes(2))];
		}),
	);
}

function anyValue(bytes: Buffer): OtlpValue {
	const value = new Fields(bytes);
	if (value.has(2)) return value.number(2) === 1;
	if (value.has(3)) return Number(BigInt.asIntN(64, value.varint(3)));
	if (value.has(4)) return value.double(4);
	return value.text(1);
}

/** The fields of one message: varints as numbers, everything else as its bytes. */
class Fields {
	private readonly fields = new Map<number, (Buffer | bigint)[]>();

	constructor(message: Buffer) {
		let at = 0;
		const varint = (): bigint => {
			let value = 0n;
			for (let shift = 0n; ; shift += 7n) {
				const byte = message.readUInt8(at++);
				value |= BigInt(byte & 0x7f) << shift;
				if (byte < 0x80) return value;
			}
		};
		while (at < message.length) {
			const tag = Number(varint());
			let value: Buffer | bigint;
			if ((tag & 7) === 0) value = varint();
			else {
				const length = (tag & 7) === 1 ? 8 : (tag & 7) === 5 ? 4 : Number(varint());
				if (at + length > message.length) throw new RangeError("a protobuf field ends beyond its message");
				value = message.subarray(at, at + length);
				at += length;
			}
			const known = this.fields.get(tag >> 3);
			if (known === undefined) this.fields.set(tag >> 3, [value]);
			else known.push(value);
		}
	}

	has(field: number): boolean {
		return this.fields.has(field);
	}
	all(field: number): Buffer[] {
		return (this.fields.get(field) ?? []).filter((value) => typeof value !== "bigint");
	}
	bytes(field: number): Buffer {
		return this.all(field).at(-1) ?? Buffer.alloc(0);
	}
	text(field: number): string {
		return this.bytes(field).toString("utf8");
	}
	varint(field: number): bigint {
		const value = this.fields.get(field)?.at(-1);
		return typeof value === "bigint" ? value : 0n;
	}
	/** A varint or a fixed 32-bit number. */
	number(field: number): number {
		const value = this.fields.get(field)?.at(-1);
		return typeof value === "object" ? value.readUInt32LE() : Number(value ?? 0n);
	}
	fixed(field: number): bigint {
		const bytes = this.bytes(field);
		return bytes.length === 8 ? bytes.readBigUInt64LE() : 0n;
	}
	double(field: number): number {
		const bytes = this.bytes(field);
		return bytes.length === 8 ? bytes.readDoubleLE() : 0;
	}
}
