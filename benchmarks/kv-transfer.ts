// SPDX-License-Identifier: Apache-2.0
// How long does a prompt of 512 tokens take from a prefill to a decode worker, and what does a text that the decode
// worker writes meanwhile notice of it?
import { Fleet, http, openStream, scrape, type WorkerChild } from "@dynamo-ts/testing/internal";
import { report, requireModel } from "./lib.js";

const TOKENS = 512;
const PROMPTS = 4;
const model = await requireModel();

async function sum(worker: WorkerChild, name: string): Promise<number> {
	return (await scrape(worker.system)).sum(`dynamo_component_${name}`);
}

/** Time between the events of a stream, in milliseconds, sorted. */
async function gaps(url: string, during: () => Promise<void>): Promise<number[]> {
	const body = { model: "m", prompt: [1, 2, 3, 4], max_tokens: 4000, ignore_eos: true, stream: true, temperature: 0 };
	const stream = await openStream(`${url}/v1/completions`, body, {
		kind: "completions",
		model: "m",
		allowReplacementCharacter: true,
	});
	let seen = 3;
	await stream.events(seen);
	const times: number[] = [];
	let last = performance.now();
	let over = false;
	const reading = (async () => {
		while (!over) {
			await stream.events(++seen);
			times.push(performance.now() - last);
			last = performance.now();
		}
	})();
	await during();
	over = true;
	await reading;
	stream.abort();
	return times.sort((a, b) => a - b);
}

const rows: Record<string, string | number>[] = [];
for (const transport of ["auto", "tcp"]) {
	const fleet = new Fleet();
	try {
		const flags = [
			"--kv-transfer-transport",
			transport,
			"--max-model-len",
			"4096",
			"--max-num-seqs",
			"8",
			"--num-threads",
			"1",
		];
		const [prefill, decode] = await Promise.all([
			fleet.worker(model, "m", ["--is-prefill-worker", ...flags]),
			fleet.worker(model, "m", ["--is-decode-worker", ...flags]),
		]);
		const { url } = await fleet.frontend("m");
		const ask = async () => {
			const prompt = Array.from({ length: TOKENS }, () => 100 + Math.floor(Math.random() * 40_000));
			const answer = await http(`${url}/v1/completions`, {
				body: { model: "m", prompt, max_tokens: 1, temperature: 0 },
			});
			if (answer.status !== 200) throw new Error(answer.body);
		};
		await ask();
		const before = [await sum(decode, "kv_transfer_seconds_sum"), await sum(decode, "kv_transfer_bytes_total")];
		const prefillBefore = await sum(prefill, "engine_model_seconds_total");
		for (let i = 0; i < PROMPTS; i++) await ask();
		const seconds = ((await sum(decode, "kv_transfer_seconds_sum")) - before[0]!) / PROMPTS;
		const bytes = ((await sum(decode, "kv_transfer_bytes_total")) - before[1]!) / PROMPTS;
		const computing = ((await sum(prefill, "engine_model_seconds_total")) - prefillBefore) / PROMPTS;
		const quiet = await gaps(url, () => new Promise((resolve) => setTimeout(resolve, 5000)));
		const busy = await gaps(url, async () => {
			for (let i = 0; i < PROMPTS; i++) await ask();
		});
		const at = (times: number[], share: number) => times[Math.floor((times.length - 1) * share)]!.toFixed(1);
		rows.push({
			transport: transport === "auto" ? "shared memory" : "tcp",
			"MiB per prompt": (bytes / 2 ** 20).toFixed(1),
			"ms per prompt": (seconds * 1000).toFixed(1),
			"MiB/s": (bytes / 2 ** 20 / seconds).toFixed(0),
			"ms to compute it": (computing * 1000).toFixed(0),
			"gap p50/p99 quiet (ms)": `${at(quiet, 0.5)} / ${at(quiet, 0.99)}`,
			"gap p50/p99 while prompts come (ms)": `${at(busy, 0.5)} / ${at(busy, 0.99)}`,
			failed: await sum(decode, "kv_transfer_failures_total"),
		});
	} finally {
		await fleet.stop();
	}
}
report(`A prompt of ${TOKENS} tokens from a prefill to a decode worker`, rows);
