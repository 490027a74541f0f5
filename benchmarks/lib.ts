// SPDX-License-Identifier: Apache-2.0
import { execFile } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { type Child, findRealDynamo, startDynamo } from "@dynamo-ts/testing/internal";

/** Prints a table row by row: figures are ratios within one run, never compared across machines. */
export function report(title: string, rows: Record<string, string | number>[]): void {
	console.log(`\n## ${title}\n${cpus()[0]?.model ?? "unknown CPU"}, ${cpus().length} cores, Node ${process.version}`);
	const names = [...new Set(rows.flatMap((row) => Object.keys(row)))];
	console.log(`| ${names.join(" | ")} |\n|${names.map(() => "---|").join("")}`);
	for (const row of rows) console.log(`| ${names.map((name) => row[name] ?? "").join(" | ")} |`);
}

/** CPU seconds (user and system) that a process has used so far, from /proc. */
export function cpuSeconds(pid: number): number {
	const text = readFileSync(`/proc/${pid}/stat`, "utf8");
	const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
	return (Number(fields[11]) + Number(fields[12])) / 100;
}

/** Memory that a process occupies now, from /proc. */
export function residentBytes(pid: number): number {
	return Number(readFileSync(`/proc/${pid}/statm`, "utf8").split(" ")[1]) * 4096;
}

/** Runs `body` with a folder that is removed afterwards. */
export async function withTempFolder<T>(body: (folder: string) => Promise<T>): Promise<T> {
	const folder = mkdtempSync(join(tmpdir(), "dynamo-bench-"));
	try {
		return await body(folder);
	} finally {
		rmSync(folder, { recursive: true, force: true });
	}
}

/** The real Dynamo's Python, or ends the process with what is missing. */
export function requireRealDynamo(): string {
	const found = findRealDynamo();
	return found.path || stop(found.missing);
}

/** The load generator's path from LOADGEN (see docs/benchmarks.md), or ends the process. */
export function requireLoadgen(): string {
	const path = process.env.LOADGEN;
	if (path && existsSync(path)) return path;
	return stop("set LOADGEN to a load generator; docs/benchmarks.md says what it must take");
}

/** The default model's GGUF file, fetched if need be. */
export async function requireModel(): Promise<string> {
	if (process.env.DYNAMO_TEST_MODEL_GGUF) return process.env.DYNAMO_TEST_MODEL_GGUF;
	const pull = startDynamo(["pull", "smollm2-135m"]);
	await pull.exited;
	return pull.stdout.trim().split("\n").at(-1) ?? stop("dynamo pull printed no path");
}

export interface LoadResult {
	tokens: number;
	/** Prompt tokens that workers had cached. */
	cached: number;
	fails: number;
	tok_s: number;
	ttft_ms_p50: number;
	ttft_ms_p99: number;
	itl_ms_p50: number;
	itl_ms_p99: number;
	cpu_s: Record<string, number>;
	wall_s: number;
}

/** One run of the load generator; `watch` are the processes whose CPU time it reads. */
export async function runLoadgen(loadgen: string, url: string, args: string[], watch: Child[]): Promise<LoadResult> {
	const pids = watch.map((child) => child.pid).join(",");
	// Not the synchronous form: while it waits, nobody would read what the watched processes print, and they would stall.
	const { stdout } = await promisify(execFile)(loadgen, ["-url", url, ...args, "-pids", pids], { timeout: 600_000 });
	return JSON.parse(stdout.trim().split("\n").at(-1) ?? "") as LoadResult;
}

function stop(why: string): never {
	console.error(`benchmark: ${why}`);
	process.exit(1);
}
