// SPDX-License-Identifier: Apache-2.0
// Starts a real Prometheus for tests, on a free port with a configuration and a data folder of its own; and promtool.
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Child, until } from "./child-process.js";
import type { Found } from "./found.js";
import { freePort } from "./free-port.js";
import { http } from "./sse-client.js";

const found = new Map<string, boolean>();

function find(program: "prometheus" | "promtool"): Found {
	if (!found.has(program)) found.set(program, spawnSync(program, ["--version"]).status === 0);
	const missing = found.get(program) ? "" : `no ${program} on the PATH (Debian: apt-get install prometheus)`;
	return { path: missing ? "" : program, missing };
}

export const findPrometheus = (): Found => find("prometheus");
export const findPromtool = (): Found => find("promtool");

/** Runs promtool. @returns its exit code and all that it said. */
export function promtool(args: readonly string[], input = ""): { code: number | null; output: string } {
	const done = spawnSync("promtool", args, { input, encoding: "utf8", timeout: 30_000 });
	return { code: done.status, output: `${done.stdout}${done.stderr}` };
}

/** Lets promtool read queries, as rules that record them. */
export function checkQueries(queries: readonly string[]): { code: number | null; output: string } {
	const folder = mkdtempSync(join(tmpdir(), "dynamo-promtool-"));
	const file = join(folder, "rules.yml");
	const rules = queries.map((expr, i) => ({ record: `query_${i}`, expr }));
	writeFileSync(file, JSON.stringify({ groups: [{ name: "queries", rules }] }));
	try {
		return promtool(["check", "rules", file]);
	} finally {
		rmSync(folder, { recursive: true, force: true });
	}
}

/** One series of an instant query. */
export interface PromSeries {
	readonly metric: Readonly<Record<string, string>>;
	readonly value: number;
}

/** A Prometheus that scrapes every half second. */
export class Prometheus {
	readonly url: string;
	readonly #child: Child;
	readonly #folder: string;

	private constructor(url: string, child: Child, folder: string) {
		this.url = url;
		this.#child = child;
		this.#folder = folder;
	}

	/**
	 * @param jobs `host:port` of the targets of each job.
	 * @throws Error when there is no Prometheus, or it does not start.
	 */
	static async start(jobs: Readonly<Record<string, readonly string[]>>): Promise<Prometheus> {
		const program = findPrometheus();
		if (program.missing) throw new Error(program.missing);
		const folder = mkdtempSync(join(tmpdir(), "dynamo-prometheus-"));
		const config = {
			global: { scrape_interval: "500ms", scrape_timeout: "500ms" },
			scrape_configs: Object.entries(jobs).map(([name, targets]) => ({
				job_name: name,
				static_configs: [{ targets }],
			})),
		};
		// JSON is YAML.
		writeFileSync(join(folder, "prometheus.yml"), JSON.stringify(config));
		const address = `127.0.0.1:${await freePort()}`;
		const child = new Child(program.path, [
			`--config.file=${join(folder, "prometheus.yml")}`,
			`--storage.tsdb.path=${join(folder, "data")}`,
			`--web.listen-address=${address}`,
		]);
		const prometheus = new Prometheus(`http://${address}`, child, folder);
		try {
			await until("Prometheus is ready", () => prometheus.#ready(), { child });
		} catch (error) {
			await prometheus.stop();
			throw error;
		}
		return prometheus;
	}

	async #ready(): Promise<boolean> {
		return http(`${this.url}/-/ready`).then(
			({ status }) => status === 200,
			() => false,
		);
	}

	/** An instant query. @throws Error with what Prometheus says of a query that is none. */
	async query(expr: string): Promise<PromSeries[]> {
		const { body } = await http(`${this.url}/api/v1/query?query=${encodeURIComponent(expr)}`);
		const answer = JSON.parse(body);
		if (answer.status !== "success") throw new Error(`${expr}: ${answer.error}`);
		const { result, resultType } = answer.data;
		if (resultType === "scalar") return [{ metric: {}, value: Number(result[1]) }];
		return result.map(({ metric, value }: { metric: Record<string, string>; value: [number, string] }) => ({
			metric,
			value: Number(value[1]),
		}));
	}

	/** Ends it and removes its folder. */
	async stop(): Promise<void> {
		await this.#child.stop();
		rmSync(this.#folder, { recursive: true, force: true });
	}
}
