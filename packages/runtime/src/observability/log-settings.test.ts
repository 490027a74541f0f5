// SPDX-License-Identifier: Apache-2.0
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, describe, expect, it } from "vitest";
import { EnvReader } from "../config.js";
import { parseLogFilter } from "./log-filter.js";
import { logConfigFromEnv } from "./log-settings.js";

const folder = mkdtempSync(join(tmpdir(), "dynamo-logging-"));
afterAll(() => rmSync(folder, { recursive: true }));

const read = (env: Record<string, string>) => logConfigFromEnv(new EnvReader(env));
const file = (text: string): string => {
	const path = join(folder, `${Math.random()}.toml`);
	writeFileSync(path, text);
	return path;
};

describe("the logging file", () => {
	const path = file('log_level = "warn"\n[log_filters]\ndynamo_runtime = "debug"\n"dynamo_llm::http" = "error"\n');

	it("gives level and rules", () => {
		const filter = parseLogFilter(read({ DYN_LOGGING_CONFIG_PATH: path }).filter);
		expect(filter.levelFor("other")).toBe(2);
		expect(filter.levelFor("dynamo_runtime::discovery")).toBe(4);
		expect(filter.levelFor("dynamo_llm::http::service")).toBe(1);
	});

	it("gives way to DYN_LOG for the level, and wins for the targets that it names", () => {
		const { filter } = read({ DYN_LOGGING_CONFIG_PATH: path, DYN_LOG: "trace,dynamo_runtime=off,mine=error" });
		const parsed = parseLogFilter(filter);
		expect(parsed.levelFor("other")).toBe(5);
		expect(parsed.levelFor("dynamo_runtime")).toBe(4);
		expect(parsed.levelFor("mine")).toBe(1);
	});

	it.each([
		[file("log_level = 3"), "log_level must be a text"],
		[file("[log_filters]\na = 1"), "log_filters must be a table"],
		[file("no toml"), "it is not TOML"],
		[join(folder, "absent.toml"), "it cannot be read"],
	])("that cannot be used is named: %s", (bad, why) => {
		expect(() => read({ DYN_LOGGING_CONFIG_PATH: bad })).toThrow(`DYN_LOGGING_CONFIG_PATH: ${bad}: ${why}`);
	});
});

it("libraries are quiet below errors, unless DYN_LOG says otherwise", () => {
	const level = (env: Record<string, string>, target: string) => parseLogFilter(read(env).filter).levelFor(target);
	expect(level({}, "tower::buffer")).toBe(1);
	expect(level({ DYN_LOG: "debug" }, "opentelemetry::sdk")).toBe(1);
	expect(level({ DYN_LOG: "debug,h2=trace" }, "h2::codec")).toBe(5);
	expect(level({ DYN_LOG: "debug" }, "tower_http::trace::on_failure")).toBe(4);
});

describe("colours", () => {
	const before = Object.getOwnPropertyDescriptor(process.stderr, "isTTY");
	afterEach(() => {
		if (before === undefined) Reflect.deleteProperty(process.stderr, "isTTY");
		else Object.defineProperty(process.stderr, "isTTY", before);
	});

	it.each([
		[true, {}, true],
		[true, { NO_COLOR: "" }, true],
		[true, { NO_COLOR: "1" }, false],
		[true, { DYN_SDK_DISABLE_ANSI_LOGGING: "1" }, false],
		[false, {}, false],
	] as const)("on a terminal (%s), with %j: %s", (isTTY, env, ansi) => {
		Object.defineProperty(process.stderr, "isTTY", { value: isTTY, configurable: true, writable: true });
		expect(read(env).ansi).toBe(ansi);
	});
});
