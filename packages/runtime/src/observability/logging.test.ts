// SPDX-License-Identifier: Apache-2.0
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { parseLogFilter } from "./log-filter.js";
import type { LogConfig } from "./log-settings.js";
import { createLogger, type Logger, type LogLevel } from "./logging.js";

const fixture = (name: string) =>
	readFileSync(fileURLToPath(new URL(`../../fixtures/observability/${name}`, import.meta.url)), "utf8").split("\n");

const logTo = (lines: string[], config: Partial<LogConfig> = {}) =>
	createLogger({ filter: "info", format: "readable", ansi: false, localTime: false, ...config }, "a::b", (line) =>
		lines.push(line),
	);

describe("log filter", () => {
	it.each([
		["info", "x", 3],
		["", "x", 3],
		["off", "x", 0],
		["DEBUG", "x", 4],
		["debug,dynamo_runtime=trace", "dynamo_runtime::discovery", 5],
		["debug,dynamo_runtime=trace", "dynamo_llm", 4],
		["debug,dynamo_runtime=trace", "dynamo_runtime_other", 4],
		["warn,dynamo_llm::http=info", "dynamo_llm", 2],
		["warn,dynamo_llm::http=info", "dynamo_llm::http::service", 3],
		["info,a=error,a::b=debug", "a::b::c", 4],
		["info,a=error,a::b=debug", "a::c", 1],
		["info,a", "a", 5],
		["warn, a = debug ", "a.b", 4],
	])("%j shows %s at level %i", (text, target, level) => {
		expect(parseLogFilter(text).levelFor(target)).toBe(level);
	});

	it("names the part that it does not understand", () => {
		expect(() => parseLogFilter("info,a=loud")).toThrow('"a=loud" is not "target=level"');
		expect(() => parseLogFilter("=info")).toThrow('"=info"');
	});
});

describe("readable log lines", () => {
	it("are byte for byte what the real one writes", () => {
		const real = fixture("log_readable.txt")[0] as string;
		const lines: string[] = [];
		logTo(lines)
			.child("dynamo_llm::http::service::service_v2")
			.info("Starting HTTP(S) service", { protocol: "HTTP", address: "127.0.0.1:20000" });
		expect(lines[0]?.slice(27)).toBe(`${real.slice(27)}\n`);
		expect(lines[0]?.slice(0, 27)).toMatch(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$/);
	});

	it("have the real one's colours on a terminal, and its offset with local time", () => {
		const real = fixture("log_readable_ansi.txt");
		const lines: string[] = [];
		const log = logTo(lines, { ansi: true, localTime: true }).child("dynamo_llm::http::service::service_v2");
		log.info("http response sent", { status: 200, latency_ms: 0 });
		const afterTime = (line: string) => line.slice(line.indexOf("\x1b[0m"));
		expect(afterTime(lines[0] as string)).toBe(`${afterTime(real[2] as string)}\n`);
		expect(lines[0]).toMatch(/T\d\d:\d\d:\d\d\.\d{6}[+-]\d\d:\d\d\x1b/);
		log.warn("x");
		expect(lines[1]).toContain("\x1b[33m WARN\x1b[0m");
	});

	it("stay one line whatever the message holds", () => {
		const lines: string[] = [];
		logTo(lines).error("a\nb\rc", { text: "d\ne" });
		expect(lines[0]?.indexOf("\n")).toBe((lines[0]?.length ?? 0) - 1);
	});
});

describe("JSONL log lines", () => {
	it("have the real one's keys in its order", () => {
		const real = fixture("log_worker.jsonl")
			.filter((line) => line !== "")
			.map((line) => JSON.parse(line) as Record<string, unknown>);
		for (const record of real.filter((one) => one.target !== "log")) {
			const { time, level, file, line, target, message, ...fields } = record;
			const lines: string[] = [];
			const log = logTo(lines, { format: "jsonl" }).child(target as string);
			log[(level as string).toLowerCase() as LogLevel](message as string, fields);
			const ours = JSON.parse(lines[0] as string) as Record<string, unknown>;
			expect(Object.keys(ours)).toEqual(Object.keys(record));
			expect({ ...ours, time, file, line }).toEqual({ time, level, file, line, target, message, ...fields });
		}
	});

	it("say where they come from, also those of further loggers of the target", () => {
		const lines: string[] = [];
		const log = logTo(lines, { format: "jsonl" });
		const positions = () => lines.map((text) => JSON.parse(text) as { file: string; line: number });
		const write = (one: Logger, message: string): void => {
			one.info(message);
			one.warn(message);
		};
		for (let i = 0; i < 64; i++) write(log.child("a"), `message ${i}`);
		write(log.child("a"), "message 0");
		const own = fileURLToPath(import.meta.url);
		const first = readFileSync(own, "utf8").split("\n").indexOf("\t\t\tone.info(message);") + 1;
		expect(lines).toHaveLength(130);
		for (const [i, { file, line }] of positions().entries()) {
			expect({ file, line }).toEqual({ file: own, line: first + (i % 2) });
		}
		expect(Error.stackTraceLimit).toBeGreaterThan(1);
		// Without end they would cost memory, or time.
		write(log.child("a"), "message 64");
		expect(lines.at(-1)).not.toContain('"file"');
	});

	it("write every kind of value as JSON", () => {
		const lines: string[] = [];
		logTo(lines, { format: "jsonl" }).info("m", {
			big: 18446744073709551615n,
			error: new Error("why"),
			absent: undefined,
			nested: { id: 7n },
			not: Number.NaN,
			list: [1, "x"],
		});
		expect(lines[0]).toContain('"big":18446744073709551615,');
		expect(JSON.parse(lines[0] as string)).toMatchObject({
			error: "why",
			nested: { id: "7" },
			not: "NaN",
			list: [1, "x"],
		});
		expect(lines[0]).not.toContain("absent");
		const cyclic: Record<string, unknown> = {};
		cyclic.self = cyclic;
		logTo(lines, { format: "jsonl" }).info("m", { cyclic });
		expect(JSON.parse(lines[1] as string).cyclic).toBe("[unprintable]");
	});
});

describe("loggers", () => {
	it("write nothing below their level, and inherit the fields of their parents", () => {
		const lines: string[] = [];
		const log = logTo(lines, { filter: "warn,a::b::c=debug" });
		log.info("hidden");
		expect(log.isEnabled("info")).toBe(false);
		const child = log.child("a::b::c", { x: 1 });
		child.debug("shown", { y: 2 });
		child.trace("hidden");
		expect(child.isEnabled("debug")).toBe(true);
		child.child("a::b::c::d", { z: 3 }).warn("deep");
		expect(lines.map((line) => line.slice(28))).toEqual([
			"DEBUG a::b::c: shown x=1 y=2\n",
			" WARN a::b::c::d: deep x=1 z=3\n",
		]);
	});
});

describe("stderr", () => {
	it("gets every line in order, also those of a turn in which the process ends", () => {
		const module = new URL("../../dist/observability/logging.js", import.meta.url);
		const script = `
			const { createLogger } = await import(${JSON.stringify(module.href)});
			const log = createLogger({ filter: "info", format: "jsonl", ansi: false, localTime: false }, "t");
			for (let i = 0; i < 5; i++) log.info(String(i));
			log.error("5");
			for (let i = 6; i < 9; i++) log.info(String(i));
			await new Promise((resolve) => setImmediate(resolve));
			log.info("9");
			log.info("10");
			if (process.argv.includes("throw")) queueMicrotask(() => { throw new Error("end") });
			else process.exit(3);
		`;
		for (const how of ["exit", "throw"]) {
			const { stderr } = spawnSync(process.execPath, ["--input-type=module", "-e", script, "--", how], {
				encoding: "utf8",
			});
			const messages = stderr.split("\n").filter((line) => line.startsWith("{"));
			expect(messages.map((line) => Number(JSON.parse(line).message))).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
		}
	});
});
