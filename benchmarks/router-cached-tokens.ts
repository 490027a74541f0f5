// SPDX-License-Identifier: Apache-2.0
// How many prompt tokens per request are in some worker's cache and find it? 24 groups of prompts with 1,000 words in
// common before four mockers that hold 1,024 blocks each: our frontend in the mode kv, the real one, and ours in turn,
// alternating, each round with prompts of its own.
import {
	fileDiscoveryEnv,
	findRealDynamo,
	type HttpChild,
	startDynamo,
	startOwnHttp,
	startRealFrontend,
	startRealMocker,
} from "@dynamo-ts/testing/internal";
import { report, requireLoadgen, runLoadgen, withTempFolder } from "./lib.js";

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

await withTempFolder(async (folder) => {
	const env = fileDiscoveryEnv(folder);
	const mockers = python
		? startRealMocker(python, env, modelPath, "smol", MOCKER)
		: startDynamo(["mocker", "--model-path", modelPath, "--model-name", "smol", ...MOCKER], { env });
	const own = (mode: string): Promise<HttpChild> => startOwnHttp("frontend", ["--router-mode", mode], env, "smol");
	const frontends: Record<string, HttpChild> = { "ours, kv": await own("kv") };
	if (python) frontends["real, kv"] = await startRealFrontend(python, env, "smol", ["--router-mode", "kv"]);
	frontends["ours, round-robin"] = await own("round-robin");
	try {
		const cached: Record<string, number[]> = {};
		const ttft: Record<string, number[]> = {};
		for (let round = 0; round < rounds; round++) {
			// The order turns, so that none always comes first.
			const names = Object.keys(frontends);
			const turn = [...names.slice(round % names.length), ...names.slice(0, round % names.length)];
			for (const name of turn) {
				const { url, child } = frontends[name]!;
				const seed = String(1000 * (round + 1) + names.indexOf(name));
				const load = await runLoadgen(loadgen, url, [...LOAD, "-n", String(requests), "-seed", seed], [child]);
				if (load.fails > 0) throw new Error(`${name}: ${load.fails} requests failed`);
				(cached[name] ??= []).push(load.cached / requests);
				(ttft[name] ??= []).push(load.ttft_ms_p50);
			}
		}
		const mean = (values: number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length;
		const each = (values: number[]): string => values.map((value) => value.toFixed(0)).join(", ");
		report(
			`cached tokens per request; ${rounds} rounds of ${requests} requests, ${concurrency} at a time, ${python ? "real" : "our"} mockers`,
			Object.keys(frontends).map((name) => ({
				frontend: name,
				"cached tokens per request": mean(cached[name]!).toFixed(0),
				"each round": each(cached[name]!),
				"first token, median (ms)": each(ttft[name]!),
			})),
		);
	} finally {
		await Promise.all([...Object.values(frontends).map(({ child }) => child.stop()), mockers.stop()]);
	}
});
