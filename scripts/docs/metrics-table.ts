// SPDX-License-Identifier: Apache-2.0
// The tables of docs/metrics.md, made from the catalogue of metrics.
import { fullMetricName, METRICS, type MetricFamily, shownWhen } from "@dynamo-ts/protocols/internal";

type Group = keyof typeof METRICS;

/** Title and origin of each group; a group that has none here is a mistake. */
const TITLES: Readonly<Record<string, readonly [title: string, where: string]>> = {
	frontend: [
		"Frontend",
		"Page of a frontend. `DYN_METRICS_PREFIX` replaces `dynamo_frontend` in those of requests and models.",
	],
	nim: ["NIM's names", "Page of a frontend, unless `--no-nim-metrics`. Agents for NVIDIA NIM read them."],
	component: ["Endpoints and routers", "Where an endpoint is served or a router is."],
	router: ["Routing decisions", "Where a KV router is."],
	requestPlane: ["Sending requests", "Where requests to endpoints come from."],
	transport: ["Connections of the sending side", "The same."],
	workHandler: ["Handling requests", "Where endpoints are served."],
	admission: ["Limits on requests", "The same."],
	event: ["Event plane", "Every page; not in Dynamo."],
	engine: ["Engine", "Page of a worker with an engine of ours."],
	kvTransfer: ["Handover of prompts", "Page of a prefill or decode worker; not in Dynamo."],
	vllm: ["Engine, by vLLM's names", "The same."],
};

function titleOf(group: string): readonly [string, string] {
	return TITLES[group] ?? [group, "Not in Dynamo."];
}

function tableOf(group: Group): string {
	const [title, where] = titleOf(group);
	const families = Object.entries(METRICS[group]) as [string, MetricFamily][];
	const rows = families.map(([key, { name, type, help, labels }]) => {
		const when = shownWhen(group, key);
		const shown = when === undefined ? "" : ` (${when})`;
		return `| \`${fullMetricName(group, name)}\` | ${type} | ${labels.map((label) => `\`${label}\``).join(" ")} | ${help}${shown} |`;
	});
	return [`## ${title}`, "", where, "", "| name | type | labels | meaning |", "|---|---|---|---|", ...rows].join("\n");
}

/** The whole document. */
export function metricsDocument(): string {
	const intro = `# Metrics

<!-- Written by \`npm run docs:tables\`; a test compares it with the catalogue. -->

\`GET /metrics\`: on a frontend's HTTP port, on a worker's or router's \`DYN_SYSTEM_PORT\`. Prometheus' text format. Every page has
\`process_*\` and \`nodejs_*\` as well, as prom-client names them; the latter stand for Dynamo's \`dynamo_tokio_*\`, which tell
of a runtime that is not here. Endpoints of our workers have the label \`model\` beside those of Dynamo. How to add metrics:
[metrics-developer-guide.md](metrics-developer-guide.md).

The series of a model are there at 0 as soon as a frontend finds it. When it goes they are shown by one more scrape, so
that nothing that was counted is lost, and then dropped. A family is not on the page before it has a series; what one waits
for stands in brackets. Those of the mode kv are on a router's page, too, but for \`dynamo_frontend_*\` and \`dynamo_router_*\`.
`;
	return `${intro}\n${(Object.keys(METRICS) as Group[]).map(tableOf).join("\n\n")}\n`;
}
