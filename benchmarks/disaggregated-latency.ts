// SPDX-License-Identifier: Apache-2.0
// Long prompts beside short chats, on two workers that do everything and on a prefill and a decode worker: what does
// either way cost in first tokens and in the rhythm of tokens? One thread for each worker.
import { Fleet } from "@dynamo-ts/testing/internal";
import { type LoadResult, report, requireLoadgen, requireModel, runLoadgen } from "./lib.js";

const loadgen = requireLoadgen();
const model = await requireModel();
const rounds = Number(process.argv[2] ?? 2);
const SHORT = ["-isl", "24", "-osl", "48", "-c", "3", "-n", "36"];
const LONG = ["-isl", "500", "-osl", "8", "-c", "1", "-n", "10"];
const FLAGS = ["--max-model-len", "2048", "--max-num-seqs", "8", "--num-threads", "1"];

const DEPLOYMENTS = {
	"two workers for both": [[], []],
	"a prefill and a decode worker": [["--is-prefill-worker"], ["--is-decode-worker"]],
};

interface Load {
	readonly short: LoadResult;
	readonly long: LoadResult;
}

async function measure(roles: readonly (readonly string[])[], seed: number): Promise<Load> {
	const fleet = new Fleet();
	try {
		const workers = await Promise.all(roles.map((role) => fleet.worker(model, "m", [...role, ...FLAGS])));
		const { url } = await fleet.frontend("m");
		const run = (load: string[], offset: number): Promise<LoadResult> =>
			runLoadgen(
				loadgen,
				url,
				[...load, "-model", "m", "-seed", String(seed + offset)],
				workers.map(({ child }) => child),
			);
		const [short, long] = await Promise.all([run(SHORT, 0), run(LONG, 100)]);
		if (short.fails + long.fails > 0) throw new Error(`${short.fails + long.fails} requests failed`);
		return { short, long };
	} finally {
		await fleet.stop();
	}
}

const rows: Record<string, string | number>[] = [];
for (let round = 0; round < rounds; round++) {
	for (const [name, roles] of Object.entries(DEPLOYMENTS)) {
		const { short, long } = await measure(roles, round + 1);
		for (const [kind, load] of [
			["short", short],
			["long", long],
		] as const) {
			rows.push({
				deployment: name,
				round: round + 1,
				prompts: kind,
				"first token, median (ms)": load.ttft_ms_p50.toFixed(0),
				"first token, p99 (ms)": load.ttft_ms_p99.toFixed(0),
				"between tokens, median (ms)": load.itl_ms_p50.toFixed(0),
				"between tokens, p99 (ms)": load.itl_ms_p99.toFixed(0),
			});
		}
	}
}
report("long prompts (about 500 words) beside short chats", rows);
