// SPDX-License-Identifier: Apache-2.0
// A model that takes token ids: each token follows from how many came before it, so another worker can go on with a
// stream whose worker was lost. Arguments: the folder of a model in Hugging Face form, the model's name.
import { setTimeout as sleep } from "node:timers/promises";
import { DistributedRuntime, installSignalHandlers } from "@dynamo-ts/runtime";
import { serveModel } from "@dynamo-ts/worker";

const [modelPath = ".", modelName = "counter"] = process.argv.slice(2);
const runtime = await DistributedRuntime.create();

const model = await serveModel(runtime, {
	modelName,
	input: "tokens",
	modelPath,
	contextLength: 4096,
	async *generate({ token_ids }, { signal }) {
		for (let place = token_ids.length; ; place++) {
			await sleep(5, undefined, { signal });
			yield 1000 + ((place * 7919) % 20_000);
		}
	},
});
installSignalHandlers(runtime);
console.log(`serving ${modelName} at ${model.address}`);
