// SPDX-License-Identifier: Apache-2.0
// Every field of both APIs does what it says or is refused by name; the few that promise nothing about the answer are
// listed as hints. The tables must name all fields that the parser knows and all that OpenAI documents.
import { cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { CHAT_FIELDS, COMPLETION_FIELDS } from "@dynamo-ts/protocols/internal";
import { http } from "@dynamo-ts/testing/internal";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { ScriptedCall, ScriptedWorker } from "./scripted-worker.js";
import { chatBody, MODEL, type Stack, startStack, TINY_MODEL } from "./test-support/stack.js";

/**
 * "request": the worker is told something else (or asked another prompt). "answer": the client is told something else.
 * "hint": nothing changes, and nothing was promised. A number: refused with that status.
 */
type Effect = "request" | "answer" | "hint" | number;

interface Row {
	readonly fields: Readonly<Record<string, unknown>>;
	readonly effect: Effect;
}

const tool = { type: "function", function: { name: "f", parameters: { type: "object" } } };

const COMMON: Readonly<Record<string, Row>> = {
	model: { fields: { model: "other" }, effect: 404 },
	max_tokens: { fields: { max_tokens: 3 }, effect: "request" },
	temperature: { fields: { temperature: 0.5 }, effect: "request" },
	top_p: { fields: { top_p: 0.5 }, effect: "request" },
	top_k: { fields: { top_k: 3 }, effect: "request" },
	min_p: { fields: { min_p: 0.1 }, effect: "request" },
	frequency_penalty: { fields: { frequency_penalty: 1 }, effect: "request" },
	presence_penalty: { fields: { presence_penalty: 1 }, effect: "request" },
	repetition_penalty: { fields: { repetition_penalty: 1.1 }, effect: "request" },
	n: { fields: { n: 2 }, effect: "request" },
	seed: { fields: { seed: 7 }, effect: "request" },
	stop: { fields: { stop: "world" }, effect: "answer" },
	stop_token_ids: { fields: { stop_token_ids: [268] }, effect: "answer" },
	logit_bias: { fields: { logit_bias: { "5": 1 } }, effect: "request" },
	stream: { fields: { stream: true }, effect: "answer" },
	stream_options: { fields: { stream: true, stream_options: { include_usage: true } }, effect: "answer" },
	user: { fields: { user: "u" }, effect: "hint" },
	metadata: { fields: { metadata: { a: "b" } }, effect: "hint" },
	ignore_eos: { fields: { ignore_eos: true }, effect: "request" },
	min_tokens: { fields: { min_tokens: 2 }, effect: "request" },
	include_stop_str_in_output: { fields: { include_stop_str_in_output: true }, effect: "request" },
	skip_special_tokens: { fields: { skip_special_tokens: false }, effect: "request" },
	prompt_logprobs: { fields: { prompt_logprobs: 1 }, effect: "request" },
	guided_json: { fields: { guided_json: { type: "object" } }, effect: "request" },
	guided_regex: { fields: { guided_regex: "a" }, effect: "request" },
	guided_grammar: { fields: { guided_grammar: "root ::= a" }, effect: "request" },
	guided_choice: { fields: { guided_choice: ["a"] }, effect: "request" },
	guided_decoding_backend: {
		fields: { guided_regex: "a", guided_decoding_backend: "xgrammar" },
		effect: "request",
	},
	guided_whitespace_pattern: {
		fields: { guided_json: {}, guided_whitespace_pattern: " " },
		effect: "request",
	},
	cache_salt: { fields: { cache_salt: "s" }, effect: "request" },
	detokenize: { fields: { detokenize: false }, effect: 400 },
	allowed_token_ids: { fields: { allowed_token_ids: [263] }, effect: "request" },
	return_tokens_as_token_ids: { fields: { return_tokens_as_token_ids: true }, effect: "request" },
	nvext: { fields: { nvext: { extra_fields: ["worker_id"] } }, effect: "answer" },
};

const CHAT: Readonly<Record<string, Row>> = {
	...COMMON,
	messages: { fields: { messages: [{ role: "user", content: "Ho" }] }, effect: "request" },
	max_completion_tokens: { fields: { max_completion_tokens: 3 }, effect: "request" },
	logprobs: { fields: { logprobs: true }, effect: "answer" },
	top_logprobs: { fields: { logprobs: true, top_logprobs: 2 }, effect: "request" },
	tools: { fields: { tools: [tool] }, effect: "request" },
	tool_choice: { fields: { tools: [tool], tool_choice: "required" }, effect: "request" },
	parallel_tool_calls: {
		fields: { tools: [tool], tool_choice: "required", parallel_tool_calls: false },
		effect: "request",
	},
	response_format: { fields: { response_format: { type: "json_object" } }, effect: "request" },
	reasoning_effort: { fields: { reasoning_effort: "low" }, effect: "request" },
	thinking: { fields: { thinking: false }, effect: "request" },
	thinking_token_budget: { fields: { thinking_token_budget: 5 }, effect: "request" },
	chat_template_args: { fields: { chat_template_args: { custom: "x" } }, effect: "request" },
	chat_template_kwargs: { fields: { chat_template_kwargs: { custom: "x" } }, effect: "request" },
	add_generation_prompt: { fields: { add_generation_prompt: false }, effect: "request" },
	continue_final_message: {
		fields: { add_generation_prompt: false, continue_final_message: true },
		effect: "request",
	},
	mm_processor_kwargs: { fields: { mm_processor_kwargs: { a: 1 } }, effect: "request" },
	media_io_kwargs: { fields: { media_io_kwargs: { a: 1 } }, effect: "request" },
	functions: { fields: { functions: [{ name: "f" }] }, effect: 501 },
	function_call: { fields: { function_call: "auto" }, effect: 501 },
	// Text is always among the modalities, and Dynamo takes all of these as they are.
	modalities: { fields: { modalities: ["text"] }, effect: "hint" },
	audio: { fields: { audio: { voice: "a", format: "wav" } }, effect: "hint" },
	prediction: { fields: { prediction: { type: "content", content: "x" } }, effect: "hint" },
	service_tier: { fields: { service_tier: "flex" }, effect: "hint" },
	store: { fields: { store: true }, effect: "hint" },
	web_search_options: { fields: { web_search_options: {} }, effect: "hint" },
	prompt_cache_key: { fields: { prompt_cache_key: "k" }, effect: "hint" },
	// Documented by OpenAI, unknown to Dynamo.
	safety_identifier: { fields: { safety_identifier: "u" }, effect: 400 },
	prompt_cache_retention: { fields: { prompt_cache_retention: "24h" }, effect: 400 },
	verbosity: { fields: { verbosity: "low" }, effect: 400 },
	best_of: { fields: { best_of: 2 }, effect: 400 },
};

const COMPLETION: Readonly<Record<string, Row>> = {
	...COMMON,
	prompt: { fields: { prompt: "Ho" }, effect: "request" },
	suffix: { fields: { suffix: "x" }, effect: 400 },
	prompt_embeds: { fields: { prompt_embeds: Buffer.alloc(120).toString("base64") }, effect: 400 },
	logprobs: { fields: { logprobs: 1 }, effect: "answer" },
	echo: { fields: { echo: true }, effect: "answer" },
	best_of: { fields: { best_of: 2 }, effect: "request" },
	no_stop_trim: { fields: { no_stop_trim: true }, effect: "request" },
	// Without a chat template there is nothing that they could mean.
	add_generation_prompt: { fields: { add_generation_prompt: false }, effect: 400 },
	continue_final_message: { fields: { continue_final_message: true }, effect: 400 },
};

/** The request fields of OpenAI's API reference. */
const OPENAI_CHAT =
	"messages model audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens " +
	"metadata modalities n parallel_tool_calls prediction presence_penalty prompt_cache_key prompt_cache_retention " +
	"reasoning_effort response_format safety_identifier seed service_tier stop store stream stream_options temperature " +
	"tool_choice tools top_logprobs top_p user verbosity web_search_options";
const OPENAI_COMPLETION =
	"model prompt best_of echo frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed stop stream " +
	"stream_options suffix temperature top_p user";

let stack: Stack;
let worker: ScriptedWorker;
let folder: string;

const script = (call: ScriptedCall): void => {
	for (const id of [263, 268]) call.send({ token_ids: [id], log_probs: [-0.5] });
	call.finish("length").end();
};

beforeAll(async () => {
	folder = await mkdtemp(join(tmpdir(), "dynamo-fields-"));
	await cp(TINY_MODEL, folder, { recursive: true });
	const path = join(folder, "tokenizer_config.json");
	const config = JSON.parse(await readFile(path, "utf8"));
	config.chat_template =
		"{{ tools }}|{{ reasoning_effort }}|{{ enable_thinking }}|{{ custom }}|" +
		"{% for message in messages %}{{ message['content'] }}{% if not loop.last or not continue_final_message %}end{% endif %}" +
		"{% endfor %}{% if add_generation_prompt %}go{% endif %}";
	await writeFile(path, JSON.stringify(config));
	stack = await startStack();
	worker = await stack.worker({ script, folder });
});
afterAll(async () => {
	await stack.close();
	await rm(folder, { recursive: true, force: true });
});

interface Outcome {
	readonly status: number;
	readonly error: unknown;
	/** What the worker got, and what the client; ids and times masked. */
	readonly request: string;
	readonly answer: string;
}

async function ask(path: string, body: Record<string, unknown>): Promise<Outcome> {
	const before = worker.calls.length;
	const { status, body: text, json } = await http(path, { body });
	return {
		status,
		error: status === 200 ? undefined : json.message,
		request: JSON.stringify(worker.calls.slice(before).map((call) => call.body)),
		answer: text.replace(/cmpl-[0-9a-f-]{36}/g, "ID").replace(/"created":\d+/g, ""),
	};
}

describe.each([
	{ name: "chat", rows: CHAT, known: CHAT_FIELDS, documented: OPENAI_CHAT, base: () => chatBody() },
	{
		name: "completions",
		rows: COMPLETION,
		known: COMPLETION_FIELDS,
		documented: OPENAI_COMPLETION,
		base: () => ({ model: MODEL, prompt: "Hi" }) as Record<string, unknown>,
	},
])("fields of $name", ({ name, rows, known, documented, base }) => {
	const url = (): string => (name === "chat" ? stack.chat : stack.completions);

	it("are all in the table", () => {
		const missing = [...known.keys(), ...documented.split(" ")].filter((field) => !(field in rows));
		expect(missing).toEqual([]);
	});

	it.each(Object.entries(rows))("%s", async (field, { fields, effect }) => {
		// The others that it comes with are there in both requests.
		const { [field]: _, ...others } = fields;
		const plain = await ask(url(), { ...base(), ...others });
		const tried = await ask(url(), { ...base(), ...fields });
		expect(plain.status).toBe(200);
		if (typeof effect === "number") {
			expect(tried.status).toBe(effect);
			if (effect !== 404) expect(tried.error).toContain(field);
			expect(tried.request).toBe("[]");
			return;
		}
		expect(tried.status).toBe(200);
		if (effect === "hint") expect([tried.request, tried.answer]).toEqual([plain.request, plain.answer]);
		else expect(tried[effect]).not.toBe(plain[effect]);
	});
});
