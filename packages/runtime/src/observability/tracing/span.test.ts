// SPDX-License-Identifier: Apache-2.0
import fc from "fast-check";
import { beforeEach, describe, expect, it } from "vitest";
import { createLogger } from "../logging.js";
import { createSampler, SAMPLERS } from "./sampler.js";
import { type Span, Tracer } from "./span.js";
import { newSpanId, newTraceId, parseTraceparent } from "./trace-context.js";

const ended: Span[] = [];
const tracer = new Tracer(
	{ sink: { end: (span) => ended.push(span) }, lifecycle: undefined },
	(_id, parent) => parent ?? true,
);
const CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

beforeEach(() => {
	ended.length = 0;
});

describe("traceparent", () => {
	it("is read as W3C says", () => {
		expect(parseTraceparent(CALLER)).toEqual({
			traceId: "0af7651916cd43dd8448eb211c80319c",
			spanId: "b7ad6b7169203331",
			flags: "01",
		});
		const later = CALLER.replace("00-", "cc-");
		expect(parseTraceparent(`${later}-what-comes-then`)).toEqual(parseTraceparent(CALLER));
		for (const bad of [
			undefined,
			"",
			"nonsense",
			`${CALLER}-x`,
			CALLER.toUpperCase(),
			CALLER.replace("00-", "ff-"),
			`00-${"0".repeat(32)}-b7ad6b7169203331-01`,
			`00-0af7651916cd43dd8448eb211c80319c-${"0".repeat(16)}-01`,
		]) {
			expect(parseTraceparent(bad), String(bad)).toBeUndefined();
		}
	});

	it("that a span sends is read back, whatever came in", () => {
		fc.assert(
			fc.property(fc.oneof(fc.string(), fc.constant(CALLER)), fc.string(), (traceparent, xRequestId) => {
				const span = tracer.enter("a", { traceparent, xRequestId }).child("b");
				const sent = span.headers();
				expect(parseTraceparent(sent.traceparent)).toEqual({
					traceId: span.traceId,
					spanId: span.spanId,
					flags: span.sampled ? "01" : "00",
				});
				expect(sent["x-request-id"]).toBe(xRequestId);
			}),
		);
	});

	it("ids are never used twice", () => {
		const ids = new Set(Array.from({ length: 20_000 }, (_, i) => (i % 2 === 0 ? newTraceId() : newSpanId())));
		expect(ids.size).toBe(20_000);
		for (const id of ids) expect(id).toMatch(/^([0-9a-f]{16}){1,2}$/);
	});
});

describe("spans", () => {
	it("know where they belong", () => {
		const outer = tracer.enter("outer", { traceparent: CALLER, xRequestId: "x" }, { kind: "server" });
		const inner = outer.child("inner", { fields: { a: 1, b: undefined } });
		expect(outer.hasRemoteParent).toBe(true);
		expect(inner.hasRemoteParent).toBe(false);
		expect(inner).toMatchObject({ traceId: outer.traceId, parentId: outer.spanId, xRequestId: "x", sampled: true });
		expect(inner.fields).toEqual({ a: 1 });
	});

	it("end once, and not before they begin", () => {
		const span = tracer.enter("a", {}, { startedAt: 2000 });
		span.end(1000);
		span.end(9000);
		expect(ended).toEqual([span]);
		expect(span.endedAt).toBe(2000);
	});

	it("keep a bounded number of events, and none when they are over", () => {
		const span = tracer.enter("a", {});
		for (let i = 0; i < 200; i++) span.addEvent(String(i), "info", "t", undefined);
		expect(span.events.length).toBe(128);
		expect(span.droppedEvents).toBe(72);
		const other = tracer.enter("b", {});
		other.end();
		other.addEvent("late", "info", "t", undefined);
		expect(other.events).toEqual([]);
	});

	it("that nobody takes keep nothing but what log lines need", () => {
		const unrecorded = new Tracer({ sink: undefined, lifecycle: undefined }, () => true).enter("a", {});
		unrecorded.addEvent("x", "info", "t", undefined);
		unrecorded.setAttribute("y", 1);
		unrecorded.set("z", 1);
		unrecorded.end();
		expect(unrecorded).toMatchObject({ recording: false, sampled: true, events: [], attributes: undefined });
		expect(unrecorded.fields).toEqual({ z: 1 });
		tracer.enter("b", { traceparent: CALLER.replace(/01$/, "00") }).end();
		expect(ended).toEqual([]);
	});

	it("tell their begin and end where that is asked for", () => {
		const lines: string[] = [];
		const config = { filter: "info", format: "readable", ansi: false, localTime: false } as const;
		const log = createLogger(config, "", (line) => lines.push(line.slice(28)));
		const host = { sink: { end: () => {} }, lifecycle: (target: string) => log.child(target) };
		const span = new Tracer(host, () => true).enter("a", {}, {}, { request_id: "r", none: undefined });
		span.set("x", "y");
		span.child("b", { target: "of::b" }).end();
		span.end();
		const ids = `request_id=r trace_id=${span.traceId}\n`;
		expect(lines[0]).toBe(` INFO a: request_span: SPAN_FIRST_ENTRY ${ids}`);
		expect(lines[1]).toMatch(/^ INFO a:b: of::b: SPAN_FIRST_ENTRY request_id=r /);
		expect(lines[2]).toMatch(/^ INFO a:b: of::b: SPAN_CLOSED time.duration_us=\d+ request_id=r /);
		expect(lines[3]).toMatch(/^ INFO a: request_span: SPAN_CLOSED time.duration_us=\d+ request_id=r x="y" trace_id=/);
		expect(span.events.map(({ name }) => name)).toEqual(["SPAN_FIRST_ENTRY"]);
	});

	it("say on their lines which request they belong to, as the ones around them do", () => {
		const lines: string[] = [];
		const config = { filter: "info", format: "jsonl", ansi: false, localTime: false } as const;
		const log = createLogger(config, "t", (line) => lines.push(line));
		const outer = tracer.enter("outer", { xRequestId: "x" }, {}, { request_id: "r" });
		log.info("m", undefined, outer.child("middle").child("inner"));
		log.info("m", { request_id: "another" }, outer.child("middle"));
		const said = lines.map((line) => JSON.parse(line) as Record<string, string>);
		expect(said[0]).toMatchObject({ span_name: "inner", request_id: "r", x_request_id: "x", trace_id: outer.traceId });
		expect(said[1]).toMatchObject({ request_id: "another" });
		expect(outer.child("middle").fields).toEqual({});
	});
});

describe("samplers", () => {
	it("follow the caller when they are based on the parent, and only then", () => {
		for (const sampler of SAMPLERS) {
			const sample = createSampler({ sampler, ratio: 1 });
			const own = !sampler.endsWith("always_off");
			const parentBased = sampler.startsWith("parentbased");
			expect(sample(newTraceId(), undefined)).toBe(own);
			expect(sample(newTraceId(), true)).toBe(parentBased ? true : own);
			expect(sample(newTraceId(), false)).toBe(parentBased ? false : own);
		}
	});

	it("by trace id decide alike everywhere and keep about the share that is asked for", () => {
		const half = createSampler({ sampler: "traceidratio", ratio: 0.5 });
		const third = createSampler({ sampler: "parentbased_traceidratio", ratio: 0.3 });
		const ids = Array.from({ length: 4000 }, newTraceId);
		const kept = ids.filter((id) => half(id, undefined));
		expect(kept.length / ids.length).toBeGreaterThan(0.45);
		expect(kept.length / ids.length).toBeLessThan(0.55);
		for (const id of ids) if (third(id, undefined)) expect(half(id, undefined)).toBe(true);
		expect(createSampler({ sampler: "traceidratio", ratio: 0 })(newTraceId(), true)).toBe(false);
	});
});
