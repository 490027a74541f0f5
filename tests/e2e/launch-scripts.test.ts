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
	PROJECT_ROOT,
	scrape,
	testModel,
	titled,
} from "@dynamo-ts/testing/internal";
import { afterEach, describe, expect, test } from "vitest";

const LAUNCH = join(PROJECT_ROOT, "deploy/launch");
const model = testModel("gguf");
const tool = (name: string): string =>
	spawnSync(name, ["--version"]).status === 0 ? "" : `no ${name} on the PATH (Debian: apt-get install ${name})`;
const missing = model.missing || tool("curl");

const folders: string[] = [];
const scripts: Child[] = [];

afterEach(async () => {
	await Promise.all(scripts.splice(0).map((script) => script.stop(20_000)));
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

async function ask(frontend: string, name: string): Promise<void> {
	const body = { model: name, messages: [{ role: "user", content: "Hello!" }], max_tokens: 4 };
	const answer = await http(`${frontend}/v1/chat/completions`, { body });
	expect(answer.status, answer.body).toBe(200);
}

/** Ctrl-C, and what is left then. */
async function interrupt({ script, folder }: Launched): Promise<void> {
	script.kill("SIGINT");
	expect((await script.exited).code, script.output.slice(-2000)).toBe(130);
	expect(processesOf(folder)).toEqual([]);
}

describe.skipIf(missing)(titled("launch scripts", missing), () => {
	test.each([{ name: "agg.sh", says: "Aggregated deployment ready!", workers: ["Worker"] }])(
		"$name: serves, and Ctrl-C ends all of it",
		async ({ name, says, workers }) => {
			const launched = await launch(name, [model.path, "--served-model-name", "smol", "--num-threads", "1"]);
			const { script } = launched;
			await script.waitForOutput(/Metrics Endpoints:\n(.+\n)+\n/, 100_000);
			expect(script.stdout).toContain(`${says}\nModel: smol\n`);
			expect(script.stdout).toContain(`API Endpoint:\n  ${launched.frontend}/v1/chat/completions\n`);
			for (const [i, label] of workers.entries()) {
				expect(script.stdout).toContain(`\n  ${label}: ${launched.workers[i]}/metrics\n`);
				expect((await scrape(launched.workers[i]!)).value("dynamo_component_uptime_seconds")).toBeGreaterThan(0);
			}
			await ask(launched.frontend, "smol");
			await interrupt(launched);
		},
		120_000,
	);

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
