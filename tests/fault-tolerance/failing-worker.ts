// SPDX-License-Identifier: Apache-2.0
// A model that fails: at once when one token is asked for, else after three. Arguments: the folder of a model in Hugging
// Face form, the model's name.
import { DistributedRuntime, installSignalHandlers } from "@dynamo-ts/runtime";
import { serveModel } from "@dynamo-ts/worker";

const [modelPath = ".", modelName = "failing"] = process.argv.slice(2);
const runtime = await DistributedRuntime.create();
await serveModel(runtime, {
	modelName,
	input: "tokens",
	modelPath,
	*generate({ stop_conditions }) {
		if (stop_conditions?.max_tokens === 1) throw new Error("it fails at once");
		yield [1000, 1001, 1002];
		throw new Error("it fails in the middle");
	},
});
installSignalHandlers(runtime);
console.log(`serving ${modelName}`);
