// SPDX-License-Identifier: Apache-2.0
// The scripts in deploy/launch/ start what they say, wait until it answers, and leave nothing behind.
import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
	Child,
	fileDiscoveryEnv,
	freePort,
	http,
	type OtlpReceiver,
	type OtlpSpan,
	PROJECT_ROOT,
	scrape,
	startOtlpReceiver,
	testModel,
	titled,
	until,
} from "@dynamo-ts/testing/internal";
import { afterEach, describe, expect, test } from "vitest";

const LAUNCH = join(PROJECT_ROOT, "deploy/launch");
const model = testModel("gguf");
const tool = (name: string): string =>
	spawnSync(name, ["--version"]).status === 0 ? "" : `no ${name} on the PATH (Debian: apt-get install ${name})`;
const missing = model.missing || tool("curl");

const folders: string[] = [];
const scripts: Child[] = [];
const receivers: OtlpReceiver[] = [];

afterEach(async () => {
	await Promise.all(scripts.splice(0).map((script) => script.stop(20_000)));
	await Promise.all(receivers.splice(0).map((receiver) => receiver.close()));
	for (const folder of folders.splice(0)) rmSync(folder, { recursive: true, force: true });
});

interface Launched {
	readonly script: Child;
	readonly folder: string;
	readonly frontend: string;
	/** Addresses of the workers' system servers. */
	readonly workers: string[];
}

async function launch(name: string, args: readonly string[], env: Record<string, string> = {}): Promise<Launched> {
	const folder = mkdtempSync(join(tmpdir(), "dynamo-launch-"));
	folders.push(folder);
	const ports: number[] = [];
	while (ports.length < 7) ports.push(await freePort());
	const [httpPort, ...others] = ports.map(String) as [string, ...string[]];
	const script = new Child(join(LAUNCH, name), args, {
		env: {
			...fileDiscoveryEnv(folder),
			DYN_HTTP_PORT: httpPort,
			...Object.fromEntries([1, 2, 3, 4].map((i) => [`DYN_SYSTEM_PORT${i}`, others[i - 1]!])),
			DYN_VLLM_KV_EVENT_PORT1: others[4]!,
			DYN_VLLM_KV_EVENT_PORT2: others[5]!,
			DYN_LAUNCH_TIMEOUT: "90",
			// No ~/observability.env of whoever runs the tests.
			HOME: folder,
			XDG_CACHE_HOME: process.env.XDG_CACHE_HOME ?? join(process.env.HOME ?? folder, ".cache"),
			...env,
		},
	});
	scripts.push(script);
	const address = (port: string) => `http://localhost:${port}`;
	return { script, folder, frontend: address(httpPort), workers: others.slice(0, 4).map(address) };
}

/** Processes with a launch's folder in their environment. */
function processesOf(folder: string): string[] {
	const found: string[] = [];
	for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
		try {
			if (readFileSync(`/proc/${pid}/environ`, "utf8").includes(folder)) found.push(pid);
		} catch {
			// It has ended, or is another user's.
		}
	}
	return found;
}

async function ask(frontend: string, name: string, headers: Record<string, string> = {}): Promise<void> {
	const body = { model: name, messages: [{ role: "user", content: "Hello!" }], max_tokens: 4 };
	const answer = await http(`${frontend}/v1/chat/completions`, { body, headers });
	expect(answer.status, answer.body).toBe(200);
}

/** Ctrl-C, and what is left then. */
async function interrupt({ script, folder }: Launched): Promise<void> {
	script.kill("SIGINT");
	expect((await script.exited).code, script.output.slice(-2000)).toBe(130);
	expect(processesOf(folder)).toEqual([]);
}

describe.skipIf(missing)(titled("launch scripts", missing), () => {
	async function ready({ script }: Launched): Promise<void> {
		await script.waitForOutput(/Metrics Endpoints:\n( .+\n)+\n/, 100_000);
	}

	test("agg.sh: serves, and Ctrl-C ends all of it", async () => {
		const launched = await launch("agg.sh", [model.path, "--served-model-name", "smol", "--num-threads", "1"]);
		const { script, frontend, workers } = launched;
		await ready(launched);
		expect(script.stdout).toContain("Aggregated deployment ready!\nModel: smol\n");
		expect(script.stdout).toContain(`API Endpoint:\n  ${frontend}/v1/chat/completions\n`);
		expect(script.stdout).toContain(`\n  Worker: ${workers[0]}/metrics\n`);
		expect((await scrape(workers[0]!)).value("dynamo_component_uptime_seconds")).toBeGreaterThan(0);
		await ask(frontend, "smol");
		await interrupt(launched);
	}, 120_000);

	test("disagg_obs.sh: the walk-through of docs/observability.md", async () => {
		const receiver = await startOtlpReceiver();
		receivers.push(receiver);
		const launched = await launch("disagg_obs.sh", [model.path, "--served-model-name", "smol", "--num-threads", "1"], {
			OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: receiver.url,
			OTEL_EXPORTER_OTLP_LOGS_ENDPOINT: receiver.url,
		});
		const { script, frontend, workers } = launched;
		await ready(launched);
		expect(script.stdout).toContain("Disaggregated deployment ready with observability enabled!\nModel: smol\n");
		for (const [i, label] of ["Decode Worker 1", "Decode Worker 2", "Prefill Worker 1", "Prefill Worker 2"].entries()) {
			expect(script.stdout).toContain(`\n  ${label}: ${workers[i]}/metrics\n`);
		}
		expect(script.stdout).toContain("Grafana: http://localhost:3000 (username: dynamo, password: dynamo)\n");

		const pages = await Promise.all(workers.map((url) => scrape(url)));
		for (const page of pages) expect(page.value("dynamo_component_uptime_seconds")).toBeGreaterThan(0);
		await ask(frontend, "smol", { "x-request-id": "test-disaggregated-001" });
		const created = "vllm:request_prefill_kv_computed_tokens_created";
		expect((await scrape(workers[2]!)).value(created, { model_name: "smol" })).toBeGreaterThan(1.7e9);
		expect((await scrape(frontend)).sum("dynamo_frontend_requests_total", { model: "smol", status: "success" })).toBe(
			1,
		);
		// A decode worker computes but the last token of a prompt.
		const prompts = await Promise.all(
			workers.map(async (url) => (await scrape(url)).sum("dynamo_component_engine_prefill_tokens_total")),
		);
		expect(prompts[0]! + prompts[1]!).toBeLessThanOrEqual(1);
		expect(prompts[2]! + prompts[3]!).toBeGreaterThan(1);

		const root = () =>
			receiver.spans.find(
				({ name, attributes }) => name === "http-request" && attributes.x_request_id === "test-disaggregated-001",
			);
		const trace = () => receiver.trace(root()?.traceId ?? "");
		const payloads = () => trace().filter(({ name }) => name === "handle_payload");
		await until("all spans have come", () => root() !== undefined && payloads().length === 2, { child: script });
		const serviceOf = ({ resource }: OtlpSpan) => String(resource["service.name"]);
		expect(serviceOf(root()!)).toBe("dynamo-frontend");
		const routing = trace().find(({ name }) => name === "prefill_routing");
		expect(routing?.parentSpanId).toBe(root()?.spanId);
		expect(payloads().map(serviceOf)).toEqual([
			expect.stringMatching(/^dynamo-worker-prefill-[12]$/),
			expect.stringMatching(/^dynamo-worker-decode-[12]$/),
		]);
		for (const { attributes } of payloads()) expect(attributes.x_request_id).toBe("test-disaggregated-001");

		// The same trace is in the log lines of every process that had a part in the request.
		const lines = script.stderr.split("\n").filter((line) => line.includes(root()!.traceId));
		const targets = new Set(lines.map((line) => JSON.parse(line).message));
		expect(targets).toContain("request received");
		expect(targets).toContain("request completed");
		await interrupt(launched);
	}, 120_000);

	test("a process that ends takes the others with it, and is named", async () => {
		const launched = await launch("agg.sh", [join(LAUNCH, "no-such-model.gguf")]);
		expect((await launched.script.exited).code).toBe(1);
		expect(launched.script.stderr).toMatch(
			/^Worker \(dynamo worker\) ended with exit code \d+; the lines above say why$/m,
		);
		expect(processesOf(launched.folder)).toEqual([]);
	}, 60_000);
});

const shellcheck = tool("shellcheck");
test.skipIf(shellcheck)(titled("shellcheck finds no fault with the scripts", shellcheck), () => {
	const files = readdirSync(LAUNCH).filter((name) => name.endsWith(".sh"));
	// SC2119: none of the scripts passes its own arguments on to the frontend.
	const done = spawnSync("shellcheck", ["-x", "-e", "SC2119", ...files], { cwd: LAUNCH, encoding: "utf8" });
	expect(done.stdout).toBe("");
});
