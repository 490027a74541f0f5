// SPDX-License-Identifier: Apache-2.0
import { ENV } from "@dynamo-ts/protocols/internal";
import { EXIT } from "../cli-error.js";
import type { Command, CommandContext } from "../command.js";
import type { CommandSpec } from "../flags/flag-spec.js";
import { resolveModel } from "../models/resolve-model.js";

const SPEC: CommandSpec = {
	name: "pull",
	summary: "Gets a model into the cache; goes on where an earlier attempt stopped.",
	positionals: [
		{
			name: "MODEL",
			required: false,
			help: "A Hugging Face id (org/name, or org/name/file.gguf) or an alias (smollm2-135m, the default).",
		},
	],
	flags: [
		{
			flag: "hf-token",
			env: ENV.HF_TOKEN,
			type: "string",
			defaultText: "the one that the hub's own login stored",
			help: "Token for private and gated models.",
		},
		{
			flag: "hf-endpoint",
			env: ENV.HF_ENDPOINT,
			type: "string",
			metavar: "URL",
			defaultText: "https://huggingface.co",
			help: "Address of the hub or of a mirror.",
		},
		{
			flag: "weights",
			type: "boolean",
			default: true,
			help: "Get the weights too; without them a model serves for `dynamo mocker`.",
		},
	],
	epilog: ["examples:", "  dynamo pull", "  dynamo pull Qwen/Qwen2.5-0.5B-Instruct"],
};

/** `dynamo pull`: fetch, and print where the model is. */
export const command: Command = { spec: SPEC, run };

async function run({ flags, console, lifecycle }: CommandContext): Promise<number> {
	const model = await lifecycle.breakable(
		resolveModel(flags.positionals[0], {
			env: flags.env,
			console,
			refresh: true,
			weights: flags.boolean("weights"),
			signal: lifecycle.signal,
		}),
	);
	console.out(`${model.path}\n`);
	return EXIT.ok;
}
