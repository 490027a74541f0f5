// SPDX-License-Identifier: Apache-2.0
// How long from the start of `dynamo serve` to the first token, with model, graph and build cached?
import { freePort, startDynamo } from "@dynamo-ts/testing/internal";
import { report, requireModel } from "./lib.js";

const model = await requireModel();
const rounds = Number(process.argv[2] ?? 5);
const rows: Record<string, string | number>[] = [];
for (let round = 0; round <= rounds; round++) {
	const port = await freePort();
	const start = performance.now();
	const child = startDynamo(["serve", model, "--http-port", String(port)]);
	let listed = 0;
	let first = 0;
	while (!first) {
		try {
			if (!listed) {
				const models = (await (await fetch(`http://127.0.0.1:${port}/v1/models`)).json()) as { data: { id: string }[] };
				if (models.data.length === 0) throw new Error("not yet");
				listed = performance.now() - start;
				const answer = await fetch(`http://127.0.0.1:${port}/v1/chat/completions`, {
					method: "POST",
					headers: { "content-type": "application/json" },
					body: JSON.stringify({
						model: models.data[0]!.id,
						messages: [{ role: "user", content: "What is the capital of France?" }],
						stream: true,
						max_tokens: 8,
						temperature: 0,
					}),
				});
				await answer.body!.getReader().read();
				first = performance.now() - start;
			}
		} catch {
			if (child.ended) throw new Error(child.output);
			await new Promise((resolve) => setTimeout(resolve, 5));
		}
	}
	await child.stop();
	// Round 0 fills the caches.
	if (round > 0) rows.push({ round, "model listed (ms)": listed.toFixed(0), "first token (ms)": first.toFixed(0) });
}
report("dynamo serve: from start to first token, everything cached", rows);
