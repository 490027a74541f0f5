// SPDX-License-Identifier: Apache-2.0
// Do aiperf, which times the answers at the client, and the frontend's own histograms say the same of time to first token
// and inter-token latency? A simulated worker at the speed of a device, one frontend, and loads of several sizes.
import { execFile } from "node:child_process";
import { cpSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { Fleet, scrape, testModel } from "@dynamo-ts/testing/internal";
import { report, withTempFolder } from "./lib.js";

const aiperf = process.env.AIPERF ?? "";
if (!existsSync(aiperf)) throw new Error("set AIPERF to aiperf's program (pip install aiperf in a venv)");
const model = testModel("hf");
if (model.missing !== "") throw new Error(model.missing);
const requests = Number(process.argv[2] ?? 48);
const CONCURRENCY = ["1", "4", "16"];
const WARM_UP = "16";
/** Tokens. */
const PROMPT = 2048;
const ANSWER = 32;
/** A simulated worker a quarter as fast: times as of a large model, beside which those of the client are small. */
const SPEED = "0.25";
const MODEL = "smol";
/** Prompts that nobody has sent before. */
let seed = 1;

/** aiperf takes tokenizers by their names in a cache of the Hugging Face hub, not by their folders. */
function hubCache(folder: string): Record<string, string> {
	const repo = join(folder, "hub", "models--local--smol");
	const revision = "0".repeat(40);
	mkdirSync(join(repo, "refs"), { recursive: true });
	writeFileSync(join(repo, "refs", "main"), revision);
	cpSync(model.path, join(repo, "snapshots", revision), {
		recursive: true,
		dereference: true,
		filter: (file) => !/\.(safetensors|bin|gguf|onnx)$/.test(file),
	});
	return { HF_HOME: folder, HF_HUB_OFFLINE: "1", TRANSFORMERS_OFFLINE: "1" };
}

interface Figures {
	/** Milliseconds. */
	readonly ttft: number;
	readonly itl: number;
}

async function runAiperf(
	url: string,
	concurrency: string,
	folder: string,
	env: Record<string, string>,
): Promise<Figures> {
	const args = [
		...["profile", "--model", MODEL, "--url", url, "--endpoint-type", "chat", "--streaming", "--ui", "none"],
		...["--tokenizer", "local/smol", "--random-seed", String(seed++), "--use-server-token-count"],
		...["--isl", String(PROMPT), "--isl-stddev", "0", "--osl", String(ANSWER), "--osl-stddev", "0"],
		...["--extra-inputs", "ignore_eos:true", "--extra-inputs", `min_tokens:${ANSWER}`],
		...["--concurrency", concurrency, "--request-count", String(requests), "--output-artifact-dir", folder],
	];
	await promisify(execFile)(aiperf, args, { timeout: 600_000, env: { ...process.env, ...env }, maxBuffer: 1 << 26 });
	const result = JSON.parse(readFileSync(join(folder, "profile_export_aiperf.json"), "utf8"));
	return { ttft: result.time_to_first_token.avg, itl: result.inter_token_latency.avg };
}

const PREFIX = "dynamo_frontend_";
const FAMILIES = { ttft: "time_to_first_token_seconds", itl: "inter_token_latency_seconds" } as const;

/** Sums and counts of the frontend's histograms. */
async function totals(url: string): Promise<Record<keyof Figures, { sum: number; count: number }>> {
	const page = await scrape(url);
	const of = (name: string) => ({ sum: page.sum(`${PREFIX}${name}_sum`), count: page.sum(`${PREFIX}${name}_count`) });
	return { ttft: of(FAMILIES.ttft), itl: of(FAMILIES.itl) };
}

const rows: Record<string, string | number>[] = [];
const fleet = new Fleet();
try {
	await fleet.mocker(model.path, MODEL, ["--speedup-ratio", SPEED]);
	const frontend = await fleet.frontend(MODEL);
	await withTempFolder(async (folder) => {
		const env = hubCache(join(folder, "hf"));
		// Nobody's first requests count.
		await runAiperf(frontend.url, WARM_UP, join(folder, "warm-up"), env);
		for (const concurrency of CONCURRENCY) {
			const before = await totals(frontend.url);
			const theirs = await runAiperf(frontend.url, concurrency, join(folder, concurrency), env);
			const after = await totals(frontend.url);
			const ours = (name: keyof Figures): number =>
				((after[name].sum - before[name].sum) / (after[name].count - before[name].count)) * 1000;
			const compare = (name: keyof Figures) => ({
				[`${name} aiperf (ms)`]: theirs[name].toFixed(2),
				[`${name} frontend (ms)`]: ours(name).toFixed(2),
				[`${name} ratio`]: (ours(name) / theirs[name]).toFixed(3),
			});
			rows.push({ concurrency, ...compare("ttft"), ...compare("itl") });
		}
	});
} finally {
	await fleet.stop();
}
report(`means over ${requests} requests of ${PROMPT} tokens and ${ANSWER} tokens of answer`, rows);
