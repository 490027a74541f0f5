// SPDX-License-Identifier: Apache-2.0
// What dashboards, alerts and documents ask for exists: a real Prometheus scrapes a cluster under load and answers every
// query of every dashboard; names and labels are found in what was scraped.
import { readdirSync, readFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { fullMetricName, LABELS, METRICS } from "@dynamo-ts/protocols/internal";
import {
	type DashboardQueries,
	dashboardQueries,
	Fleet,
	findPrometheus,
	type HttpChild,
	http,
	PROJECT_ROOT,
	Prometheus,
	type PromPage,
	runStreamLoad,
	scrape,
	selectorsOf,
	testModel,
	titled,
	until,
	type WorkerChild,
	withVariables,
} from "@dynamo-ts/testing/internal";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { parse } from "yaml";

const MODEL = "smol";
const OBSERVABILITY = join(PROJECT_ROOT, "deploy/observability");
const model = testModel("gguf");
const missing = model.missing || findPrometheus().missing;

/** What other exporters give: NVIDIA's DCGM exporter, cAdvisor, the node exporter. Served by this test in their place. */
const EXTERNAL = {
	DCGM_FI_DEV_GPU_UTIL: 'gpu="0"',
	DCGM_FI_DEV_MEM_COPY_UTIL: 'gpu="0"',
	DCGM_FI_DEV_FB_USED: 'gpu="0"',
	DCGM_FI_PROF_NVLINK_TX_BYTES: 'gpu="0"',
	DCGM_FI_PROF_NVLINK_RX_BYTES: 'gpu="0"',
	container_cpu_usage_seconds_total: 'pod="p",container="main"',
	node_cpu_seconds_total: 'mode="idle"',
};

/** Labels of every family of the catalogue; our workers add the model to those of their endpoints. */
const CATALOGUE = new Map(
	(Object.keys(METRICS) as (keyof typeof METRICS)[]).flatMap((group) =>
		Object.values(METRICS[group]).map((family): [string, Set<string>] => [
			fullMetricName(group, family.name),
			new Set([...family.labels, ...(family.labels.includes(LABELS.endpoint) ? [LABELS.model] : [])]),
		]),
	),
);

/** Labels that a scrape adds. */
const SCRAPE_LABELS = ["job", "instance", "namespace", "pod"];

const dashboards = readdirSync(join(OBSERVABILITY, "grafana/dashboards")).map((file): [string, DashboardQueries] => [
	file,
	JSON.parse(readFileSync(join(OBSERVABILITY, "grafana/dashboards", file), "utf8")),
]);
const queries = dashboards.flatMap(([file, dashboard]) =>
	dashboardQueries(dashboard).map(({ panel, expr }) => ({ where: `${file}: ${panel}`, expr })),
);

interface AlertRules {
	readonly groups: readonly { readonly rules: readonly { readonly alert: string; readonly expr: string }[] }[];
}

const alerts = (parse(readFileSync(join(OBSERVABILITY, "alerts.yml"), "utf8")) as AlertRules).groups
	.flatMap(({ rules }) => rules)
	.map(({ alert, expr }) => ({ where: `alerts.yml: ${alert}`, expr }));

async function startExporter(): Promise<Server> {
	const started = Date.now();
	const server = createServer((_request, response) => {
		const value = (Date.now() - started) / 1000;
		response.end(
			Object.entries(EXTERNAL)
				.map(([name, labels]) => `${name}{${labels}} ${value}\n`)
				.join(""),
		);
	});
	await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
	return server;
}

describe.skipIf(missing)(titled("metrics as they are used", missing), () => {
	const fleet = new Fleet();
	const workers: WorkerChild[] = [];
	let frontend: HttpChild;
	let prometheus: Prometheus;
	let exporter: Server;
	const pages: PromPage[] = [];

	async function load(round: number): Promise<void> {
		await runStreamLoad({
			url: frontend.url,
			model: MODEL,
			streams: 12,
			concurrency: 4,
			maxTokens: 12,
			randomTokens: true,
			prompt: (stream) =>
				`Tell me the long story of the number ${stream % 3}, and of all that came before it. ${round}`,
		});
		const ask = (body: object) => http(`${frontend.url}/v1/chat/completions`, { body });
		const messages = [{ role: "user", content: "Hi" }];
		expect((await ask({ model: MODEL, messages, max_tokens: 4 })).status).toBe(200);
		expect((await ask({ model: MODEL, messages: [], max_tokens: 4 })).status).toBe(400);
		expect((await ask({ model: "none", messages })).status).toBe(404);
	}

	beforeAll(async () => {
		// Few blocks, so that some are evicted.
		const args = ["--speedup-ratio", "10", "--num-gpu-blocks-override", "64"];
		const roles = ["--is-prefill-worker", "--is-decode-worker", "--is-prefill-worker", "--is-decode-worker"];
		workers.push(...(await Promise.all(roles.map((role) => fleet.mocker(model.path, MODEL, [...args, role])))));
		frontend = await fleet.frontend(MODEL, ["--router-mode", "kv"]);
		exporter = await startExporter();
		const host = (url: string) => url.replace("http://", "");
		prometheus = await Prometheus.start({
			"dynamo-frontend": [host(frontend.url)],
			"dynamo-backend": workers.map(({ system }) => host(system)),
			others: [`127.0.0.1:${(exporter.address() as AddressInfo).port}`],
		});
		const scraped = async () => (await prometheus.query("sum(up)"))[0]?.value === workers.length + 2;
		await until("every target was scraped", scraped);
		// A counter shows its rate from its second value on.
		await load(1);
		const counted = async () => ((await prometheus.query("sum(dynamo_frontend_requests_total)"))[0]?.value ?? 0) >= 15;
		await until("the first load was scraped", counted);
		await load(2);
		for (const url of [frontend.url, ...workers.map(({ system }) => system)]) pages.push(await scrape(url));
	}, 90_000);

	afterAll(async () => {
		exporter?.close();
		await Promise.all([prometheus?.stop(), fleet.stop()]);
	});

	test("every target answers", async () => {
		const { body } = await http(`${prometheus.url}/api/v1/targets?state=active`);
		for (const { lastError, scrapeUrl } of JSON.parse(body).data.activeTargets) {
			expect(lastError, scrapeUrl).toBe("");
		}
	});

	test("every query of every dashboard has data after a load", async () => {
		const values = { __rate_interval: "1m", __range: "5m", model: MODEL, namespace: ".*" };
		const hasData = async (expr: string) =>
			(await prometheus.query(withVariables(expr, values))).some(({ value }) => !Number.isNaN(value));
		let waiting = queries;
		const deadline = Date.now() + 20_000;
		while (waiting.length > 0 && Date.now() < deadline) {
			const found = await Promise.all(waiting.map(({ expr }) => hasData(expr)));
			waiting = waiting.filter((_, i) => !found[i]);
			if (waiting.length > 0) await new Promise((resolve) => setTimeout(resolve, 250));
		}
		expect(waiting.map(({ where, expr }) => `${where}: ${expr}`)).toEqual([]);
	});

	/** Labels of a series, as scraped; of one that only trouble brings, as the catalogue has it. */
	function labelsOf(name: string): Set<string> | undefined {
		const samples = pages.flatMap((page) => page.select(name));
		if (samples.length > 0) return new Set(samples.flatMap(({ labels }) => Object.keys(labels)));
		return CATALOGUE.get(name.replace(/_(bucket|sum|count)$/, "")) ?? CATALOGUE.get(name);
	}

	test("every series that dashboards and alerts name is on a page, with its labels", () => {
		const unknown: string[] = [];
		for (const { where, expr } of [...queries, ...alerts]) {
			for (const { name, labels } of selectorsOf(expr)) {
				if (name in EXTERNAL || name === "up") continue;
				const known = labelsOf(name);
				if (known === undefined) unknown.push(`${where}: no ${name}`);
				for (const label of labels) {
					if (known?.has(label) === false && !SCRAPE_LABELS.includes(label))
						unknown.push(`${where}: ${name} has no label ${label}`);
				}
			}
		}
		expect(unknown).toEqual([]);
	});
});
