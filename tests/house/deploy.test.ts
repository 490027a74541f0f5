// SPDX-License-Identifier: Apache-2.0
// The files in deploy/ fit together: compose files, Prometheus' and Grafana's configuration, dashboards, manifests.
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { ENV } from "@dynamo-ts/protocols/internal";
import {
	checkQueries,
	dashboardQueries,
	findPromtool,
	PROJECT_ROOT,
	promtool,
	startDynamo,
	titled,
	withVariables,
} from "@dynamo-ts/testing/internal";
import { describe, expect, test } from "vitest";
import { parse, parseAllDocuments } from "yaml";
import { buildDashboards } from "../../scripts/dashboards/build.js";

const DEPLOY = join(PROJECT_ROOT, "deploy");
const read = (...path: string[]): string => readFileSync(join(DEPLOY, ...path), "utf8");

function filesBelow(folder: string, end: string): string[] {
	const names = readdirSync(join(DEPLOY, folder), { recursive: true, encoding: "utf8" });
	return names.filter((name) => name.endsWith(end)).map((name) => join(folder, name));
}

interface ComposeFile {
	readonly name: string;
	readonly services: Record<string, ComposeService>;
	readonly networks: Record<string, { name: string; external?: boolean }>;
	readonly volumes: Record<string, unknown>;
}

interface ComposeService {
	readonly image: string;
	readonly ports?: string[];
	readonly volumes?: string[];
	readonly networks: string[] | Record<string, { aliases?: string[] }>;
	readonly depends_on?: string[];
	readonly profiles?: string[];
	readonly environment?: Record<string, string>;
}

const compose = {
	infrastructure: parse(read("docker-compose.yml")) as ComposeFile,
	observability: parse(read("docker-observability.yml")) as ComposeFile,
};

/** Names under which a container of one of the compose files is reached. */
function hostNames(): Set<string> {
	const names = new Set(["host.docker.internal", "localhost"]);
	for (const { services } of Object.values(compose)) {
		for (const [name, { networks }] of Object.entries(services)) {
			names.add(name);
			if (!Array.isArray(networks))
				for (const alias of Object.values(networks).flatMap(({ aliases }) => aliases ?? [])) names.add(alias);
		}
	}
	return names;
}

describe("compose files", () => {
	const taken = new Set<string>();
	for (const [which, file] of Object.entries(compose)) {
		test(`${which}: images have versions, ports are free, volumes and networks exist`, () => {
			for (const [name, service] of Object.entries(file.services)) {
				expect(service.image, name).toMatch(/^[a-z0-9./-]+:[\w.-]+$/);
				expect(service.image, name).not.toMatch(/:latest$/);
				for (const port of service.ports ?? []) {
					const [, host, inside] = /^(?:127\.0\.0\.1:)?(\d+):(\d+)$/.exec(port) ?? [];
					expect(Number(inside), port).toBeGreaterThan(0);
					expect(taken.has(host!), `${name}: ${port} is taken`).toBe(false);
					taken.add(host!);
				}
				for (const volume of service.volumes ?? []) {
					const [source, target] = volume.split(":");
					expect(target, volume).toMatch(/^\//);
					if (source!.startsWith(".")) expect(existsSync(join(DEPLOY, source!)), volume).toBe(true);
					else expect(file.volumes, volume).toHaveProperty([source!]);
				}
				const networks = Array.isArray(service.networks) ? service.networks : Object.keys(service.networks);
				for (const network of networks) expect(file.networks).toHaveProperty([network]);
				for (const other of service.depends_on ?? []) expect(file.services).toHaveProperty([other]);
			}
		});
	}

	test("both stand in the same network, under names that do not clash", () => {
		expect(compose.observability.networks.server).toEqual({
			...compose.infrastructure.networks.server,
			external: true,
		});
		expect(compose.observability.name).not.toBe(compose.infrastructure.name);
	});

	test("ports and passwords are those that people know", () => {
		const { services } = compose.observability;
		const ports = Object.fromEntries(Object.entries(services).map(([name, { ports }]) => [name, ports]));
		expect(ports).toEqual({
			prometheus: ["9090:9090"],
			grafana: ["3000:3000"],
			tempo: ["3200:3200"],
			loki: ["3100:3100"],
			"otel-collector": ["4317:4317", "4318:4318"],
			"nats-prometheus-exporter": ["7777:7777"],
			"dcgm-exporter": ["9401:9401"],
		});
		expect(services.grafana!.environment).toMatchObject({
			GF_SECURITY_ADMIN_USER: "dynamo",
			GF_SECURITY_ADMIN_PASSWORD: "dynamo",
		});
		expect(services["dcgm-exporter"]!.profiles).toEqual(["gpu"]);
	});
});

describe("configuration of the services", () => {
	test("every address in it is that of a service", () => {
		const names = hostNames();
		const texts = ["prometheus.yml", "otel-collector.yaml", "grafana/datasources/datasources.yml"].map((file) =>
			read("observability", file).replace(/^\s*#.*$/gm, ""),
		);
		const hosts = texts.flatMap((text) =>
			[...text.matchAll(/([a-z][a-z.-]*[a-z]):\d{4}\b/g)].map((match) => match[1]!),
		);
		expect(hosts.length).toBeGreaterThan(8);
		for (const host of hosts) expect(names, host).toContain(host);
	});

	test("the collector's pipelines have only what is defined", () => {
		for (const file of ["observability/otel-collector.yaml", "observability/products/dynatrace-otel-collector.yaml"]) {
			const config = parse(read(file));
			for (const [name, pipeline] of Object.entries<Record<string, string[]>>(config.service.pipelines)) {
				for (const [kind, members] of Object.entries(pipeline)) {
					for (const member of members) expect(config[kind], `${file} ${name}`).toHaveProperty([member]);
				}
			}
		}
	});

	const tool = findPromtool();
	test.skipIf(tool.missing)(titled("promtool finds no fault with Prometheus' configuration", tool.missing), () => {
		const { code, output } = promtool(["check", "config", join(DEPLOY, "observability/prometheus.yml")]);
		expect(code, output).toBe(0);
		expect(output).toMatch(/SUCCESS: \d rules found/);
	});

	test("Tempo and Loki point at each other, and derived fields and queries find the trace id", () => {
		const { datasources } = parse(read("observability/grafana/datasources/datasources.yml"));
		const byUid = new Map<string, { jsonData: Record<string, unknown> }>(
			datasources.map((one: { uid: string }) => [one.uid, one]),
		);
		expect([...byUid.keys()].sort()).toEqual(["loki", "prometheus", "tempo"]);
		const { tracesToLogsV2 } = byUid.get("tempo")!.jsonData as { tracesToLogsV2: Record<string, string> };
		expect(byUid.has(tracesToLogsV2.datasourceUid!)).toBe(true);
		const { derivedFields } = byUid.get("loki")!.jsonData as { derivedFields: Record<string, string>[] };
		for (const field of derivedFields) expect(field.datasourceUid).toBe("tempo");
		const line = '{"time":"2026-01-01T00:00:00Z","trace_id":"80e1afed08e019fc1110464cfa66635c","level":"INFO"}';
		const inText = derivedFields.find((field) => field.matcherType === undefined)!;
		expect(new RegExp(inText.matcherRegex!).exec(line)?.[1]).toBe("80e1afed08e019fc1110464cfa66635c");
	});
});

describe("dashboards", () => {
	const built = buildDashboards();
	const folder = "observability/grafana/dashboards";

	test("the files are what `npm run dashboards` writes", () => {
		expect(filesBelow(folder, ".json").sort()).toEqual(
			Object.keys(built)
				.map((name) => join(folder, name))
				.sort(),
		);
		for (const [name, dashboard] of Object.entries(built)) expect(JSON.parse(read(folder, name))).toEqual(dashboard);
	});

	test("panels have ids of their own and do not overlap", () => {
		const uids = Object.values(built).map(({ uid }) => uid);
		expect(new Set(uids).size).toBe(uids.length);
		for (const [name, { panels = [], schemaVersion }] of Object.entries(built)) {
			expect(schemaVersion).toBeGreaterThanOrEqual(40);
			expect(new Set(panels.map(({ id }) => id)).size, name).toBe(panels.length);
			const cells = new Set<string>();
			for (const { gridPos, title } of panels) {
				const { x, y, w, h } = gridPos!;
				expect(x + w, `${name}: ${title}`).toBeLessThanOrEqual(24);
				for (let i = x; i < x + w; i++) {
					for (let j = y; j < y + h; j++) {
						expect(cells.has(`${i},${j}`), `${name}: ${title} lies on another panel`).toBe(false);
						cells.add(`${i},${j}`);
					}
				}
			}
		}
	});

	test("every panel asks the chosen Prometheus, and every variable is defined", () => {
		for (const dashboard of Object.values(built)) {
			const names = new Set(dashboard.templating.list?.map(({ name }) => name));
			for (const panel of dashboard.panels ?? []) {
				if (panel.type !== "row") expect(panel.datasource).toEqual({ type: "prometheus", uid: "$datasource" });
			}
			for (const { expr, panel } of dashboardQueries(dashboard as never)) {
				for (const [, name] of expr.matchAll(/\$(\w+)/g)) {
					expect(name!.startsWith("__") || names.has(name!), `${panel}: $${name}`).toBe(true);
				}
			}
		}
	});

	const tool = findPromtool();
	test.skipIf(tool.missing)(titled("every query is PromQL", tool.missing), () => {
		const values = { __rate_interval: "1m", __range: "1h", model: "m", namespace: ".*" };
		const rules = Object.values(built).flatMap((dashboard) =>
			dashboardQueries(dashboard as never).map(({ expr }) => withVariables(expr, values)),
		);
		expect(rules.length).toBeGreaterThan(100);
		const { code, output } = checkQueries(rules);
		expect(code, output).toBe(0);
		expect(output).toContain(`${rules.length} rules found`);
	});
});

describe("manifests for Kubernetes", () => {
	interface Container {
		readonly args: string[];
		readonly env: { name: string }[];
		readonly ports: { name: string; containerPort: number }[];
		readonly [probe: string]: unknown;
	}
	interface Manifest {
		readonly kind: string;
		readonly metadata: { name: string };
		readonly spec: {
			selector: { matchLabels: Record<string, string> };
			template: {
				metadata: { labels: Record<string, string>; annotations: Record<string, string> };
				spec: { containers: Container[]; serviceAccountName: string };
			};
		};
	}
	const manifests = filesBelow("kubernetes", ".yaml").flatMap((file) =>
		parseAllDocuments(read(file)).map((document): [string, Manifest] => {
			expect(document.errors, file).toEqual([]);
			return [file, document.toJS() as Manifest];
		}),
	);
	const deployments = manifests.filter(([, { kind }]) => kind === "Deployment");

	test("a scrape goes to a port that the container has, and probes too", () => {
		expect(deployments.length).toBeGreaterThanOrEqual(4);
		for (const [file, { spec }] of deployments) {
			const { metadata, spec: pod } = spec.template;
			const [container] = pod.containers;
			const ports = container!.ports.map(({ containerPort }) => String(containerPort));
			const { annotations } = metadata;
			for (const product of ["prometheus.io", "metrics.dynatrace.com"]) {
				expect(annotations[`${product}/scrape`], file).toBe("true");
				expect(ports, file).toContain(annotations[`${product}/port`]);
			}
			const datadog = annotations["ad.datadoghq.com/frontend.checks"];
			if (datadog !== undefined)
				expect(JSON.parse(datadog).nvidia_nim.instances[0].openmetrics_endpoint).toMatch(/:8000\//);
			for (const [name, probe] of Object.entries(container!)) {
				if (!name.endsWith("Probe")) continue;
				const { port } = (probe as { httpGet: { port: string } }).httpGet;
				expect(
					container!.ports.map((one) => one.name),
					`${file} ${name}`,
				).toContain(port);
			}
			for (const [key, value] of Object.entries(spec.selector.matchLabels)) expect(metadata.labels[key]).toBe(value);
			for (const { name } of container!.env) {
				expect(ENV, `${file}: ${name}`).toHaveProperty([name]);
			}
		}
	});

	test("the commands exist, with their flags", async () => {
		const commands = deployments.map(([, { spec }]) => spec.template.spec.containers[0]!.args);
		await Promise.all(
			commands.map(async ([command, ...rest]) => {
				const child = startDynamo([command!, "--help"]);
				expect((await child.exited).code, command).toBe(0);
				for (const word of rest)
					if (word.startsWith("--")) expect(child.stdout, command).toMatch(new RegExp(`${word}[ ,]`));
			}),
		);
	});
});

test("paths in comments of deploy/ exist", () => {
	for (const end of [".yml", ".yaml", ".sh", "Dockerfile"]) {
		for (const file of filesBelow(".", end)) {
			for (const [path] of read(file).matchAll(/deploy\/[\w./-]+\w/g)) {
				expect(existsSync(join(dirname(DEPLOY), path)), `${file}: ${path}`).toBe(true);
			}
		}
	}
});
