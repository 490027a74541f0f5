// SPDX-License-Identifier: Apache-2.0
// The dashboard in a real browser, and `dynamo top`, before a cluster that gets workers, load, and loses one.
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import type { ClusterSnapshot } from "@dynamo-ts/frontend/internal";
import {
	Fleet,
	findChromium,
	type HttpChild,
	http,
	runStreamLoad,
	testModel,
	titled,
	until,
	type WorkerChild,
} from "@dynamo-ts/testing/internal";
import { type Browser, chromium, type Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

const MODEL = "acme/smol-135m-instruct";
const model = testModel("gguf");
const browserFound = findChromium();
/** Where pictures of the page are kept, for people to look at; none by default. */
const PICTURES = process.env.DYNAMO_TEST_SCREENSHOTS;

const load = (frontend: HttpChild, streams: number) =>
	runStreamLoad({ url: frontend.url, model: MODEL, streams, concurrency: 4, maxTokens: 16, randomTokens: true });

describe.skipIf(model.missing)(titled("a cluster to look at", model.missing), () => {
	const fleet = new Fleet({ DYN_LOG: "warn" });
	let frontend: HttpChild;
	let withoutPage: HttpChild;
	let browser: Browser | undefined;
	let page: Page;
	const problems: string[] = [];
	const requests: string[] = [];
	const workers: WorkerChild[] = [];

	beforeAll(async () => {
		const start = async (...args: string[]): Promise<HttpChild> => {
			const child = fleet.start(["frontend", "--http-host", "127.0.0.1", "--http-port", "0", ...args]);
			const [, url] = await child.waitForOutput(/the frontend listens at (\S+)/);
			return { child, url: url as string };
		};
		[frontend, withoutPage] = await Promise.all([start("--router-mode", "kv"), start("--no-dashboard")]);
		if (browserFound.missing) return;
		browser = await chromium.launch({ executablePath: browserFound.path, args: ["--no-sandbox"] });
		page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
		page.on("console", (message) => {
			if (message.type() === "error" || message.type() === "warning") problems.push(message.text());
		});
		page.on("pageerror", (error) => problems.push(error.message));
		page.on("request", (request) => requests.push(request.url()));
	}, 60_000);

	afterAll(async () => {
		await browser?.close();
		await fleet.stop();
	});

	async function picture(name: string): Promise<void> {
		if (PICTURES === undefined) return;
		mkdirSync(PICTURES, { recursive: true });
		await page.screenshot({ path: join(PICTURES, `${name}.png`), fullPage: true });
	}

	const inBrowser = test.skipIf(browserFound.missing);

	inBrowser(titled("an empty cluster says so, and how to begin", browserFound.missing), async () => {
		await page.goto(`${frontend.url}/dashboard`);
		await page.getByRole("status").getByText("no workers").waitFor();
		expect(await page.locator("#workers").textContent()).toContain("bin/dynamo worker --model");
		expect(await page.locator("#models").textContent()).toContain("No models");
		await picture("empty");
	});

	test("workers come", async () => {
		const quick = ["--speedup-ratio", "10"];
		workers.push(await fleet.mocker(model.path, MODEL, quick), await fleet.mocker(model.path, MODEL, quick));
		// One without a system port: what is known of it comes from its events.
		await fleet.mocker(model.path, MODEL, quick, { DYN_SYSTEM_PORT: "-1" });
		const listed = async ({ url }: HttpChild) => (await http(`${url}/v1/models`)).body.includes(MODEL);
		await until("both frontends have the model", async () => (await listed(frontend)) && (await listed(withoutPage)));
	}, 30_000);

	inBrowser(titled("what happens is on the page a moment later, without a reload", browserFound.missing), async () => {
		await page.getByRole("status").getByText("all well").waitFor();
		await page.locator("tbody tr").nth(2).waitFor();
		await load(frontend, 24);
		await page.locator("#tiles").getByText("24 since start").waitFor();
		const card = page.locator("article.card");
		expect(await card.textContent()).toMatch(/TTFT p50[\d.]+ m?s/);
		expect(await card.textContent()).toContain("3 aggregated");
		for (const row of await page.locator("tbody tr").allInnerTexts()) expect(row).toMatch(/ready\s+\d+ of 256\s+0/);
		expect(await page.locator("#tiles path.curve").count()).toBeGreaterThan(2);
		await picture("load");
	});

	inBrowser(
		titled("a worker that was killed is shown as gone", browserFound.missing),
		async () => {
			workers[0]?.child.kill("SIGKILL");
			await page.locator("tr.gone").waitFor({ timeout: 20_000 });
			await page.getByRole("status").getByText("workers need a look").waitFor();
			expect(await page.locator("#worker-count").textContent()).toBe("2 of 2 take requests");
			await picture("failed");
		},
		30_000,
	);

	inBrowser(titled("fits on a phone, in the dark too", browserFound.missing), async () => {
		await page.setViewportSize({ width: 390, height: 844 });
		await page.emulateMedia({ colorScheme: "dark" });
		const [content, width] = await page.evaluate<number[]>("[document.documentElement.scrollWidth, innerWidth]");
		expect(content).toBeLessThanOrEqual(width as number);
		expect(await page.evaluate("getComputedStyle(document.body).backgroundColor")).toBe("rgb(14, 17, 22)");
		expect(await page.evaluate("getComputedStyle(document.querySelector('thead')).display")).toBe("none");
		await picture("phone");
	});

	inBrowser(titled("nothing went wrong in the browser, and nothing came from elsewhere", browserFound.missing), () => {
		expect(problems).toEqual([]);
		expect(new Set(requests.map((url) => new URL(url).origin))).toEqual(new Set([frontend.url]));
	});

	async function top(url: string): Promise<{ view: ClusterSnapshot; text: string }> {
		const [json, text] = [["--json"], []].map((more) => fleet.start(["top", "--once", "--url", url, ...more]));
		for (const child of [json!, text!]) expect((await child.exited).code, child.stderr).toBe(0);
		return { view: JSON.parse(json!.stdout), text: text!.stdout };
	}

	test("dynamo top: the same by the dashboard of a frontend and without one, by discovery", async () => {
		const [asked, found] = await Promise.all([top(frontend.url), top(withoutPage.url)]);
		for (const { view, text } of [asked, found]) {
			expect(view.models).toMatchObject([{ name: MODEL, ready: true }]);
			expect(view.windowSeconds).toBeGreaterThan(0);
			expect(text).toMatch(/^MODEL +STATE +WORKERS/m);
			expect(text).not.toContain("\x1b");
		}
		const ids = ({ view }: typeof asked) => view.workers.filter(({ state }) => state !== "gone").map(({ hex }) => hex);
		expect(ids(asked)).toEqual(ids(found));
		for (const id of ids(asked)) expect(found.text).toMatch(new RegExp(`^${id} +${MODEL} +aggregated +ready`, "m"));
	}, 30_000);

	test("dynamo top goes on until it is told to end", async () => {
		const child = fleet.start(["top", "--url", frontend.url, "--json", "--interval", "0.2"]);
		await child.waitForOutput(/\n.*\n/);
		child.kill("SIGINT");
		expect((await child.exited).code, child.stderr).toBe(0);
		for (const line of child.stdout.trim().split("\n")) expect(JSON.parse(line).version).toBe(1);
	});

	test("dynamo top says what to do where nothing answers", async () => {
		const child = fleet.start(["top", "--url", "http://127.0.0.1:1", "--discovery-backend", "mem"]);
		expect((await child.exited).code).toBe(1);
		expect(child.stderr).toMatch(/^dynamo: no dashboard at http:\/\/127\.0\.0\.1:1 \(.+\).*give --url\n$/);
	});
});
