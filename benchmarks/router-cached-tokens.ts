// SPDX-License-Identifier: Apache-2.0
// How many prompt tokens per request are in some worker's cache and find it? 24 groups of prompts with 1,000 words in
// common before four mockers that hold 1,024 blocks each: our frontend in the mode kv, the real one, and ours in turn,
// alternating, each time the same prompts before mockers that were just started.
import {
	fileDiscoveryEnv,
	findRealDynamo,
	type HttpChild,
	startDynamo,
	startOwnHttp,
	startRealFrontend,
	startRealMocker,
} from "@dynamo-ts/testing/internal";
import { type LoadResult, report, requireLoadgen, runLoadgen, withTempFolder } from "./lib.js";

const loadgen = requireLoadgen();
const modelPath = process.env.DYNAMO_TEST_MODEL_HF;
if (!modelPath) throw new Error("set DYNAMO_TEST_MODEL_HF to a model folder in Hugging Face form");
const rounds = Number(process.argv[2] ?? 3);
const requests = Number(process.argv[3] ?? 400);
const concurrency = process.argv[4] ?? "16";
/** Without the real Dynamo the mockers are ours, and there is no peer. */
const python = findRealDynamo().path;

const MOCKER = [
	"--num-workers",
	"4",
	"--num-gpu-blocks-override",
	"1024",
	"--block-size",
	"16",
	"--speedup-ratio",
	"10",
];
const LOAD = ["-isl", "1200", "-shared", "1000", "-groups", "24", "-osl", "32", "-c", concurrency];

/** The frontends that are compared. */
const FRONTENDS: Record<string, (env: Record<string, string>) => Promise<HttpChild>> = {
	"ours, kv": (env) => startOwnHttp("frontend", ["--router-mode", "kv"], env, "smol"),
	...(python ? { "real, kv": (env) => startRealFrontend(python, env, "smol", ["--router-mode", "kv"]) } : {}),
	"ours, round-robin": (env) => startOwnHttp("frontend", ["--router-mode", "round-robin"], env, "smol"),
};

/** One load on mockers that hold nothing yet. */
async function measure(start: (env: Record<string, string>) => Promise<HttpChild>, seed: number): Promise<LoadResult> {
	return await withTempFolder(async (folder) => {
		const env = fileDiscoveryEnv(folder);
		const mockers = python
			? startRealMocker(python, env, modelPath as string, "smol", MOCKER)
			: startDynamo(["mocker", "--model-path", modelPath as string, "--model-name", "smol", ...MOCKER], { env });
		let frontend: HttpChild | undefined;
		try {
			frontend = await start(env);
			const load = await runLoadgen(
				loadgen,
				frontend.url,
				[...LOAD, "-n", String(requests), "-seed", String(seed)],
				[frontend.child],
			);
			if (load.fails > 0) throw new Error(`${load.fails} requests failed`);
			return load;
		} finally {
			await Promise.all([frontend?.child.stop(), mockers.stop()]);
		}
	});
}

const loads: Record<string, LoadResult[]> = Object.fromEntries(Object.keys(FRONTENDS).map((name) => [name, []]));
for (let round = 0; round < rounds; round++) {
	// The order turns, so that none always comes first; all get the same prompts.
	const names = Object.keys(FRONTENDS);
	for (const name of [...names.slice(round % names.length), ...names.slice(0, round % names.length)]) {
		loads[name]!.push(await measure(FRONTENDS[name]!, round + 1));
	}
}
const each = (name: string, figure: (load: LoadResult) => number): string =>
	loads[name]!.map((load) => figure(load).toFixed(0)).join(", ");
report(
	`cached tokens per request; ${rounds} rounds of ${requests} requests, ${concurrency} at a time, ${python ? "real" : "our"} mockers`,
	Object.keys(FRONTENDS).map((name) => ({
		frontend: name,
		"cached tokens per request": (
			loads[name]!.reduce((sum, { cached }) => sum + cached, 0) /
			(rounds * requests)
		).toFixed(0),
		"each round": each(name, ({ cached }) => cached / requests),
		"first token, median (ms)": each(name, ({ ttft_ms_p50 }) => ttft_ms_p50),
	})),
);
