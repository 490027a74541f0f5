// SPDX-License-Identifier: Apache-2.0
// A model that takes text: it says back what it was told, word by word.
import { setTimeout as sleep } from "node:timers/promises";
import { DistributedRuntime, installSignalHandlers } from "@dynamo-ts/runtime";
import { serveModel } from "@dynamo-ts/worker";

const runtime = await DistributedRuntime.create();
const words = runtime.metrics.createCounter("parrot_words_total", "Words that were said back");

const model = await serveModel(runtime, {
	modelName: "parrot",
	input: "text",
	async *generate(request, { signal }) {
		const told = String(request.messages?.at(-1)?.content ?? request.prompt);
		const most = request.max_completion_tokens ?? request.max_tokens ?? Number.POSITIVE_INFINITY;
		for (const [i, word] of told.split(/(?<=\s)/).entries()) {
			if (i >= most) return "length";
			await sleep(20, undefined, { signal });
			words.inc();
			yield word;
		}
		return "stop";
	},
});
installSignalHandlers(runtime);
console.log(`serving parrot at ${model.address}`);
