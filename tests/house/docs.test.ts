// SPDX-License-Identifier: Apache-2.0
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { ENV, FAILURE_CLASSES } from "@dynamo-ts/protocols/internal";
import { PROJECT_ROOT, startDynamo } from "@dynamo-ts/testing/internal";
import { expect, test } from "vitest";
import { metricsDocument } from "../../scripts/docs/metrics-table.js";

function documents(): [string, string][] {
	const names = ["README.md", "ARCHITECTURE.md"];
	for (const file of readdirSync(join(PROJECT_ROOT, "docs"), { recursive: true, encoding: "utf8" })) {
		if (file.endsWith(".md")) names.push(join("docs", file));
	}
	return names.map((name) => [name, readFileSync(join(PROJECT_ROOT, name), "utf8")]);
}

test("every environment variable in the documents exists", () => {
	/** Variables of the tests and benchmarks, of the scripts around them, and of the real Dynamo. */
	const others =
		/^(DYNAMO_TEST_|DYNAMO_PEER_|DYNAMO_BENCH_|LOADGEN|LLAMA_CPP_|DYN_LAUNCH_TIMEOUT|DYN_RUNTIME_NUM_WORKER_THREADS$|DYN_SYSTEM_PORT\d|DYN_VLLM_KV_EVENT_PORT\d)/;
	const unknown: string[] = [];
	for (const [name, text] of documents()) {
		for (const [word] of text.matchAll(/\b(?:DYN|DYNAMO|ETCD|NATS|HF|OTEL)_[A-Z0-9_]*[A-Z0-9]\b/g)) {
			if (!(word in ENV) && !others.test(word)) unknown.push(`${name}: ${word}`);
		}
	}
	expect(unknown).toEqual([]);
});

test("docs/metrics.md is what npm run docs:tables writes", () => {
	expect(readFileSync(join(PROJECT_ROOT, "docs", "metrics.md"), "utf8")).toBe(metricsDocument());
});

test("every link between the documents leads somewhere", () => {
	const broken: string[] = [];
	for (const [name, text] of documents()) {
		for (const [, target] of text.matchAll(/\]\(([^)#]+)(?:#[^)]*)?\)/g)) {
			if (/^https?:/.test(target!)) continue;
			if (!existsSync(join(PROJECT_ROOT, dirname(name), target!))) broken.push(`${name}: ${target}`);
		}
	}
	expect(broken).toEqual([]);
});

test("docs/errors.md has a row for every class of failures", () => {
	const text = readFileSync(join(PROJECT_ROOT, "docs", "errors.md"), "utf8");
	const rows = new Set([...text.matchAll(/^\| ([A-Z][A-Za-z]+) \| \d{3} \|/gm)].map((match) => match[1]));
	expect([...rows].sort()).toEqual([...FAILURE_CLASSES].sort());
});

test("every dynamo command in the documents exists, with its flags", async () => {
	const used = new Map<string, Set<string>>();
	for (const [, text] of documents()) {
		for (const [, command, rest] of text.matchAll(/bin\/dynamo ([a-z-]+)([^\n`|]*)/g)) {
			const flags = used.get(command!) ?? new Set();
			for (const [flag] of rest!.matchAll(/--[a-z][a-z-]*/g)) flags.add(flag);
			used.set(command!, flags);
		}
	}
	expect(used.size).toBeGreaterThan(5);
	await Promise.all(
		[...used].map(async ([command, flags]) => {
			const child = startDynamo([command, "--help"]);
			expect((await child.exited).code, command).toBe(0);
			for (const flag of flags) expect(child.stdout, `${command} ${flag}`).toContain(`${flag} `);
		}),
	);
});
