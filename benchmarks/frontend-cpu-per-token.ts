// SPDX-License-Identifier: Apache-2.0
// How much CPU does one streamed token cost in the frontend, and how long does the first one take? Ours and the real
// Dynamo frontend stand before the same real mocker in turn; medians of several rounds.
import {
	fileDiscoveryEnv,
	listsModel,
	startOwnHttp,
	startRealFrontend,
	startRealMocker,
	until,
} from "@dynamo-ts/testing/internal";
import { report, requireLoadgen, requireRealDynamo, runLoadgen, withTempFolder } from "./lib.js";

const python = requireRealDynamo();
const loadgen = requireLoadgen();
const modelPath = process.env.DYNAMO_TEST_MODEL_HF;
if (!modelPath) throw new Error("set DYNAMO_TEST_MODEL_HF to a model folder in Hugging Face form");
const rounds = Number(process.argv[2] ?? 3);

const median = (values: number[]) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)]!;

await withTempFolder(async (folder) => {
	const env = fileDiscoveryEnv(folder);
	const mocker = startRealMocker(python, env, modelPath, "smol", ["--speedup-ratio", "1000"]);
	const real = await startRealFrontend(python, env, "smol");
	const ours = await startOwnHttp("frontend", ["--discovery-backend", "file"], env, "smol");
	await until("the mocker is listed", () => listsModel(real.url, "smol"), { child: mocker });
	const rows: Record<string, string | number>[] = [];
	try {
		const figures: Record<string, { cpu: number[]; ttft: number[]; rate: number[] }> = {};
		for (const [name, peer] of Object.entries({ ours, real })) {
			figures[name] = { cpu: [], ttft: [], rate: [] };
			await runLoadgen(loadgen, peer.url, ["-n", "200", "-c", "64"], [peer.child]);
		}
		for (let round = 0; round < rounds; round++) {
			for (const [name, peer] of Object.entries({ ours, real })) {
				const load = await runLoadgen(loadgen, peer.url, ["-n", "800", "-c", "64", "-osl", "64"], [peer.child]);
				if (load.fails > 0) throw new Error(`${name}: ${load.fails} streams failed`);
				figures[name]!.cpu.push(((load.cpu_s[peer.child.pid] ?? 0) / load.tokens) * 1e6);
				figures[name]!.rate.push(load.tok_s);
				const alone = await runLoadgen(loadgen, peer.url, ["-n", "40", "-c", "1", "-osl", "8"], [peer.child]);
				figures[name]!.ttft.push(alone.ttft_ms_p50);
			}
		}
		for (const [name, figure] of Object.entries(figures)) {
			rows.push({
				frontend: name,
				"CPU per token (µs)": median(figure.cpu).toFixed(1),
				"tokens/s at 64 streams": median(figure.rate).toFixed(0),
				"first token at 1 stream (ms)": median(figure.ttft).toFixed(1),
			});
		}
		const ratio = (key: "cpu" | "ttft") => (median(figures.ours![key]) / median(figures.real![key])).toFixed(2);
		rows.push({
			frontend: "ours / real",
			"CPU per token (µs)": ratio("cpu"),
			"first token at 1 stream (ms)": ratio("ttft"),
		});
	} finally {
		await Promise.all([ours.child.stop(), real.child.stop(), mocker.stop()]);
	}
	report("Frontend: CPU per streamed token, before the same real mocker", rows);
});
