// SPDX-License-Identifier: Apache-2.0
import { fileURLToPath } from "node:url";
import { afterEach, expect, it, vi } from "vitest";
import { createLogger } from "./logging.js";
import { rateLimited } from "./rate-limited-log.js";

afterEach(() => {
	vi.restoreAllMocks();
});

it("of each message five lines in ten seconds are written, and the next one says how many were left out", () => {
	let now = 1000;
	vi.spyOn(performance, "now").mockImplementation(() => now);
	const lines: string[] = [];
	const config = { filter: "info", format: "readable", ansi: false, localTime: false } as const;
	const log = rateLimited(createLogger(config, "test", (line) => lines.push(line)));
	for (let i = 0; i < 100; i++) log.warn("nonsense", { i });
	log.info("something else");
	expect(lines.filter((line) => line.includes("nonsense"))).toHaveLength(5);
	expect(lines).toHaveLength(6);
	now += 10_001;
	log.warn("nonsense", { i: 100 });
	expect(lines.at(-1)).toContain("left_out=95");
	for (let i = 0; i < 100; i++) log.warn("nonsense");
	expect(lines).toHaveLength(11);
	log.debug("not enabled");
	expect(lines).toHaveLength(11);
	expect(log.target).toBe("test");
});

it("lines come from where the limited logger was called", () => {
	const lines: string[] = [];
	const config = { filter: "info", format: "jsonl", ansi: false, localTime: false } as const;
	const log = rateLimited(rateLimited(createLogger(config, "test", (line) => lines.push(line))));
	log.warn("nonsense");
	expect(JSON.parse(lines[0] as string)).toMatchObject({ file: fileURLToPath(import.meta.url) });
});
