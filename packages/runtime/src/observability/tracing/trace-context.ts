// SPDX-License-Identifier: Apache-2.0
// Trace ids and how they travel: the `traceparent` header of W3C Trace Context.
import { randomFillSync } from "node:crypto";

/** What a caller says about the trace that its request is part of. */
export interface TraceContext {
	/** 32 lower-case hex digits, not all zero. */
	readonly traceId: string;
	/** Span of the caller: 16 lower-case hex digits, not all zero. */
	readonly spanId: string;
	/** Two hex digits; bit 0: the caller records the trace. */
	readonly flags: string;
}

const TRACEPARENT = /^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?$/;
const NO_TRACE = "0".repeat(32);
const NO_SPAN = "0".repeat(16);

/** Reads a `traceparent`; undefined for one that is not W3C's: the request then begins a trace of its own. */
export function parseTraceparent(header: string | undefined): TraceContext | undefined {
	if (header === undefined || !TRACEPARENT.test(header)) return undefined;
	const version = header.slice(0, 2);
	// Later versions may only add something behind what is known; ff is none.
	if (version === "ff" || (version === "00" && header.length > 55)) return undefined;
	const traceId = header.slice(3, 35);
	const spanId = header.slice(36, 52);
	const flags = header.slice(53, 55);
	if (traceId === NO_TRACE || spanId === NO_SPAN) return undefined;
	return { traceId, spanId, flags };
}

/** True when the caller records the trace. */
export function isSampled(flags: string): boolean {
	return (Number(`0x${flags}`) & 1) === 1;
}

/** Random bytes are fetched in bulk: one call per id would cost more than the rest of a span. */
const pool = Buffer.allocUnsafe(8192);
let used = pool.length;

function randomHex(bytes: number): string {
	if (used + bytes > pool.length) {
		randomFillSync(pool);
		used = 0;
	}
	used += bytes;
	return pool.toString("hex", used - bytes, used);
}

/** A new trace id: 16 random bytes as hex. */
export function newTraceId(): string {
	const id = randomHex(16);
	return id === NO_TRACE ? newTraceId() : id;
}

/** A new span id: 8 random bytes as hex. */
export function newSpanId(): string {
	const id = randomHex(8);
	return id === NO_SPAN ? newSpanId() : id;
}
