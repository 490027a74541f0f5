// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from "vitest";
import { createLogger } from "../observability/logging.js";
import { DescriptorGuard } from "./descriptor-guard.js";

describe("descriptor guard", () => {
	const setUp = (limit: number | undefined, open: number) => {
		const lines: string[] = [];
		const config = { filter: "info", format: "readable", ansi: false, localTime: false } as const;
		const log = createLogger(config, "test", (line) => void lines.push(line));
		return { guard: new DescriptorGuard(log, { limit, open: () => open }), lines };
	};

	it("lets in what fits, counts what it let in, and warns once", () => {
		const { guard, lines } = setUp(120, 90);
		const answers = Array.from({ length: 20 }, () => guard.refusal());
		expect(answers.slice(0, 14).every((answer) => answer === undefined)).toBe(true);
		expect(answers.at(-1)).toBe("too few file descriptors: 90 of 120 are open");
		expect(lines).toHaveLength(1);
		expect(lines[0]).toContain("ulimit -n");
	});

	it("counts what others still have to open", () => {
		const { guard } = setUp(1000, 500);
		expect(guard.refusal(449)).toBeUndefined();
		expect(guard.refusal(450)).toContain("500 of 1000");
	});

	it("lets everything in where the system does not tell", () => {
		const { guard } = setUp(undefined, 1e9);
		expect(guard.refusal(1e9)).toBeUndefined();
	});

	it("reads this process", () => {
		const { lines } = setUp(1, 1);
		const config = { filter: "info", format: "readable", ansi: false, localTime: false } as const;
		const guard = new DescriptorGuard(createLogger(config, "test", (line) => void lines.push(line)));
		expect(guard.refusal()).toBeUndefined();
		expect(lines).toEqual([]);
	});
});
