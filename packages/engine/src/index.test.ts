// SPDX-License-Identifier: Apache-2.0
// The public door: a change here is a change for every user of the package.
import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import * as door from "./index.js";

describe("the public names", () => {
	it("are these functions", () => {
		expect(Object.keys(door).sort()).toEqual(["KvEventTap", "createEngineThread", "createMockEngine"]);
	});

	it("are these types", () => {
		const source = readFileSync(new URL("./index.ts", import.meta.url), "utf8");
		const names = [...source.matchAll(/export (type )?\{([^}]*)\}/g)].flatMap(([, allTypes, list]) =>
			list!
				.split(",")
				.map((name) => name.trim())
				.filter((name) => name !== "" && (allTypes !== undefined || name.startsWith("type ")))
				.map((name) => name.replace("type ", "")),
		);
		expect(names.sort()).toEqual([
			"Engine",
			"EngineError",
			"EngineErrorCode",
			"EngineInfo",
			"EngineOutput",
			"EngineRequest",
			"EngineStats",
			"EngineThreadOptions",
			"FinishReason",
			"HeldKv",
			"KvFetch",
			"KvLayout",
			"KvPort",
			"LengthSummary",
			"MockEngineOptions",
			"PromptLogprob",
			"SamplingOptions",
			"SpeculativeOptions",
			"StepReport",
			"StopOptions",
			"TopLogprob",
		]);
	});

	it("come from where they are named, not by stars", () => {
		expect(readFileSync(new URL("./index.ts", import.meta.url), "utf8")).not.toMatch(/export \*/);
	});
});
