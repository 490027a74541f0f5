// SPDX-License-Identifier: Apache-2.0
// A process with an engine for tests of endurance: runs short requests and prints its memory, in MiB, ten times.
// Arguments: model, folder for graphs, number of requests.

import { createEngineThread } from "../engine-thread.js";

const [model, cacheDir, count] = process.argv.slice(2) as [string, string, string];
const total = Number(count);
const engine = createEngineThread({ model, cacheDir, quantization: "none", maxModelLen: 64, maxNumSeqs: 8 });
await engine.start();
let submitted = 0;
let ended = 0;

await new Promise<void>((resolve) => {
	const next = (): void => {
		const id = submitted++;
		const tokenIds = [5, 6, 7, 8].map((token) => (token + id) % 190);
		engine.submit(
			{ requestId: String(id), tokenIds, sampling: { temperature: 0 }, stop: { maxTokens: 3 } },
			(output) => {
				if (output.finishReason === undefined) return;
				ended++;
				if (ended % Math.ceil(total / 10) === 0) {
					globalThis.gc?.();
					console.log((process.memoryUsage().rss / 2 ** 20).toFixed(1));
				}
				if (submitted < total) next();
				else if (ended === total) resolve();
			},
		);
	};
	for (let i = 0; i < Math.min(16, total); i++) next();
});
await engine.close();
