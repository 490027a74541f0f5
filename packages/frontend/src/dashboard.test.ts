// SPDX-License-Identifier: Apache-2.0
// The dashboard's routes: the page's parts, and the JSON behind them. In a browser: tests/e2e/dashboard.test.ts.
import { until } from "@dynamo-ts/testing/internal";
import { afterEach, describe, expect, test } from "vitest";
import type { ClusterSnapshot } from "./cluster/cluster-view.js";
import { sendAll } from "./scripted-worker.js";
import { MODEL, type Stack, startStack } from "./test-support/stack.js";

let stack: Stack | undefined;

afterEach(async () => {
	await stack?.close();
	stack = undefined;
});

const get = (path: string, init?: RequestInit) => fetch(`${stack?.url}${path}`, init);
const view = async (since = 0): Promise<ClusterSnapshot> =>
	(await (await get(`/dashboard/data?since=${since}`)).json()) as ClusterSnapshot;

async function ask(content: string): Promise<void> {
	const body = JSON.stringify({ model: MODEL, messages: [{ role: "user", content }], max_tokens: 8 });
	const answer = await get("/v1/chat/completions", {
		method: "POST",
		headers: { "content-type": "application/json" },
		body,
	});
	expect(answer.status).toBe(200);
	await answer.text();
}

describe("the page", () => {
	test("comes in parts of its own, with nothing from elsewhere and no inline script", async () => {
		stack = await startStack();
		const page = await get("/dashboard");
		expect(page.status).toBe(200);
		const policy = page.headers.get("content-security-policy") ?? "";
		expect(policy).toContain("default-src 'none'");
		expect(policy).not.toMatch(/unsafe|\*|https?:/);
		const html = await page.text();
		expect(html).not.toMatch(/<script>|style="|\bon\w+="|https?:\/\//);
		const parts = [...html.matchAll(/(?:src|href)="(dashboard\/[^"]+)"/g)].map((match) => match[1]);
		expect(new Set(parts)).toEqual(new Set(["dashboard/icon.svg", "dashboard/style.css", "dashboard/app.js"]));
		const types = await Promise.all(parts.map(async (path) => (await get(`/${path}`)).headers.get("content-type")));
		expect(new Set(types)).toEqual(
			new Set(["image/svg+xml", "text/css; charset=utf-8", "text/javascript; charset=utf-8"]),
		);
		expect((await get("/dashboard", { method: "POST" })).status).toBe(405);
		expect((await get("/dashboard/other")).status).toBe(404);
	});

	test("can be switched off", async () => {
		stack = await startStack({ dashboard: false });
		for (const path of ["/dashboard", "/dashboard/app.js", "/dashboard/data"]) {
			expect((await get(path)).status, path).toBe(404);
		}
	});
});

describe("the JSON", () => {
	test("of a cluster without workers", async () => {
		stack = await startStack();
		expect(await view()).toMatchObject({ version: 1, models: [], workers: [], windowSeconds: 0, hasFrontend: true });
	});

	test("tells models, workers, and what happened between two looks", async () => {
		stack = await startStack();
		const worker = await stack.worker({ script: sendAll([5, 6, 7]) });
		const first = await view();
		expect(first.models).toMatchObject([{ name: MODEL, ready: true, workers: { aggregated: { ready: 1, all: 1 } } }]);
		expect(first.workers).toMatchObject([{ model: MODEL, role: "aggregated", state: "ready", goneSeconds: null }]);
		expect(first.workers[0]?.hex).toBe(BigInt(first.workers[0]?.id ?? 0).toString(16));
		await ask("Hello");
		await ask("Hello again");
		let seen = await view();
		await until("the requests are in a later look", async () => {
			seen = await view();
			return (seen.models[0]?.requestsPerSecond ?? 0) > 0;
		});
		expect(seen.models[0]).toMatchObject({ requestsTotal: 2, errorShare: 0, active: 0, queued: 0 });
		expect(seen.models[0]?.timeToFirstToken.p50).toBeGreaterThan(0);
		expect(seen.models[0]?.outputTokensPerSecond).toBeGreaterThan(0);
		const points = seen.history;
		expect(points.length).toBeGreaterThanOrEqual(2);
		expect((await view(points.at(-1)?.at)).history.every(({ at }) => at > (points.at(-1)?.at ?? 0))).toBe(true);
		await worker.leave();
		await until("the worker is gone", async () => (await view()).workers[0]?.state === "gone");
		const left = await view();
		expect(left.workers[0]?.goneSeconds).toBeGreaterThanOrEqual(0);
		expect(left.models[0]).toMatchObject({ name: MODEL, workers: {} });
	});
});
