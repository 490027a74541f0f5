// SPDX-License-Identifier: Apache-2.0
import type { ClusterSnapshot, WorkerView } from "@dynamo-ts/frontend/internal";
import { expect, test } from "vitest";
import { formatCluster } from "./format.js";

const NOTHING = { p50: null, p99: null, mean: null };

function worker(hex: string, more: Partial<WorkerView> = {}): WorkerView {
	return {
		id: String(BigInt(`0x${hex}`)),
		hex,
		model: "smol",
		namespace: "dynamo",
		component: "backend",
		endpoint: "generate",
		role: "decode",
		state: "ready",
		address: "10.0.0.1:4000",
		device: "cpu",
		metricsUrl: null,
		running: 3,
		waiting: 0,
		slots: 8,
		kvUsage: 0.5,
		kvBlocks: 100,
		cacheHitRate: 0.25,
		tokensPerSecond: 12.34,
		requestsPerSecond: 1,
		lastTimeToFirstToken: 0.02,
		uptimeSeconds: 7265,
		goneSeconds: null,
		...more,
	};
}

function cluster(more: Partial<ClusterSnapshot> = {}): ClusterSnapshot {
	return {
		version: 1,
		at: Date.UTC(2026, 0, 1, 10, 20, 30),
		windowSeconds: 10,
		hasFrontend: true,
		uptimeSeconds: 59.9,
		models: [
			{
				name: "smol",
				ready: true,
				contextLength: 2048,
				workers: { decode: { ready: 1, all: 2 } },
				active: 3,
				queued: 1,
				requestsPerSecond: 4.25,
				errorShare: 0.1,
				inputTokensPerSecond: 12_345,
				outputTokensPerSecond: 250.4,
				cacheHitRate: 0.5,
				timeToFirstToken: { p50: 0.0123, p99: 1.26, mean: 0.1 },
				interTokenLatency: NOTHING,
				requestsTotal: 10,
				outputTokensTotal: 100,
			},
		],
		workers: [worker("abc"), worker("def", { state: "gone", goneSeconds: 12, running: null, kvUsage: null })],
		history: [],
		...more,
	};
}

const WIDE = { columns: 300, rows: 100, colours: false };

test("a line for each model and worker, in columns", () => {
	expect(formatCluster(cluster(), WIDE)).toMatchInlineSnapshot(`
		[
		  "dynamo  10:20:30 UTC  1 model, 1 worker  frontend up 59s  rates of the last 10 s",
		  "",
		  "MODEL  STATE  WORKERS     REQ/S  TOK/S  IN TOK/S  ACTIVE  QUEUED  TTFT P50   P99  ITL P50  HITS  ERRORS",
		  "smol   ready  1/2 decode    4.3    250     12.3k       3       1    12.3ms  1.3s        -   50%     10%",
		  "",
		  "WORKER  MODEL  ROLE    STATE     RUN  WAIT  SLOTS   KV  HITS  TOK/S    TTFT    UP  ADDRESS",
		  "abc     smol   decode  ready       3     0      8  50%   25%   12.3  20.0ms  2h1m  10.0.0.1:4000",
		  "def     smol   decode  gone 12s    -     0      8    -   25%   12.3  20.0ms  2h1m  10.0.0.1:4000",
		]
	`);
});

test("an empty cluster says what to do", () => {
	const text = formatCluster(cluster({ models: [], workers: [], hasFrontend: false, uptimeSeconds: null }), WIDE).join(
		"\n",
	);
	expect(text).toContain("no workers: start one with `dynamo worker`");
	expect(text).toContain("0 models, 0 workers");
	expect(text).toContain("no frontend's numbers");
});

test("what does not fit is left out whole, and counted", () => {
	for (const columns of [20, 60, 90, 140]) {
		for (const line of formatCluster(cluster(), { ...WIDE, columns }).slice(2))
			expect(line.length).toBeLessThanOrEqual(columns);
	}
	const short = formatCluster(
		cluster({ workers: Array.from({ length: 50 }, (_, i) => worker((i + 1).toString(16))) }),
		{ ...WIDE, rows: 10 },
	);
	expect(short).toHaveLength(10);
	expect(short.at(-1)).toMatch(/^\.\.\. and \d+ more lines$/);
});

test("colours only where they are wanted, and closed again", () => {
	expect(formatCluster(cluster(), WIDE).join("")).not.toContain("\x1b");
	const coloured = formatCluster(cluster(), { ...WIDE, colours: true }).join("\n");
	expect(coloured.split("\x1b[0m").length).toBe(coloured.split(/\x1b\[[1-9]\d*m/).length);
});
