// SPDX-License-Identifier: Apache-2.0
// A worker whose every move is written down: for tests and benchmarks of what stands before workers.
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import {
	checkedFile,
	type DynamoError,
	type LLMEngineOutput,
	type ModelDeploymentCard,
	type ModelRecord,
	type PreprocessedRequest,
	slugify,
	type WireFinishReason,
} from "@dynamo-ts/protocols/internal";
import type { DistributedRuntime, IngressRequest, ResponseWriter, ServedEndpoint } from "@dynamo-ts/runtime";

/** Plays one request. Called when it arrives; everything after that is up to it. */
export type Script = (call: ScriptedCall) => void;

/** A request at a scripted worker, with what a script needs to answer it. */
export class ScriptedCall {
	readonly request: IngressRequest;
	readonly response: ResponseWriter;
	/** Resolves with how the request was cancelled. */
	readonly cancelled: Promise<string>;

	constructor(request: IngressRequest, response: ResponseWriter) {
		this.request = request;
		this.response = response;
		this.cancelled = new Promise((resolve) => request.onCancel(resolve));
	}

	get body(): PreprocessedRequest {
		return this.request.payload as PreprocessedRequest;
	}

	/** Sends one delta. */
	send(output: Partial<LLMEngineOutput>): this {
		this.response.send({ data: { token_ids: [], ...output } });
		return this;
	}

	/** Sends token ids, one delta each. */
	tokens(ids: readonly number[], index?: number): this {
		for (const id of ids) this.send({ token_ids: [id], ...(index === undefined ? {} : { index }) });
		return this;
	}

	/** Sends the finish reason in a delta of its own. */
	finish(reason: WireFinishReason, index?: number): this {
		return this.send({ finish_reason: reason, ...(index === undefined ? {} : { index }) });
	}

	end(): void {
		this.response.end();
	}

	fail(error: DynamoError): void {
		this.response.fail(error);
	}
}

export interface ScriptedWorkerOptions {
	/** Public name of the model. */
	readonly model: string;
	/** Folder with tokenizer.json, tokenizer_config.json, config.json and generation_config.json. */
	readonly folder: string;
	readonly script: Script;
	readonly namespace?: string;
	readonly component?: string;
	/** Members that replace those of the card. */
	readonly card?: Partial<ModelDeploymentCard>;
	/** Serve the endpoint without writing the model record. */
	readonly withoutCard?: boolean;
}

/** A registered scripted worker. */
export interface ScriptedWorker {
	/** Requests that have come, in order. */
	readonly calls: ScriptedCall[];
	readonly record: ModelRecord;
	readonly served: ServedEndpoint;
	/** Resolves with the n-th request (from 0). */
	call(n: number): Promise<ScriptedCall>;
	/** Takes back the model record, then the endpoint. */
	leave(): Promise<void>;
}

/** A card whose files lie in a folder of this host. */
export async function folderCard(model: string, folder: string): Promise<ModelDeploymentCard> {
	const file = async (name: string) => checkedFile(join(folder, name), await readFile(join(folder, name)));
	return {
		display_name: model,
		slug: slugify(model),
		model_info: { hf_config_json: await file("config.json") },
		tokenizer: { hf_tokenizer_json: await file("tokenizer.json") },
		prompt_formatter: { hf_tokenizer_config_json: await file("tokenizer_config.json") },
		gen_config: { hf_generation_config_json: await file("generation_config.json") },
		kv_cache_block_size: 16,
		migration_limit: 0,
		model_type: "Chat | Completions",
		model_input: "Tokens",
		worker_type: "aggregated",
		needs: [],
		runtime_config: { context_length: 256, total_kv_blocks: 100, max_num_seqs: 8, max_num_batched_tokens: 512 },
	};
}

/** Serves `generate` with a script and registers the model. */
export async function startScriptedWorker(
	runtime: DistributedRuntime,
	options: ScriptedWorkerOptions,
): Promise<ScriptedWorker> {
	const { namespace = "dynamo", component = "backend" } = options;
	const endpoint = runtime.namespace(namespace).component(component).endpoint("generate");
	const calls: ScriptedCall[] = [];
	const waiting: { n: number; resolve: (call: ScriptedCall) => void }[] = [];
	const served = await endpoint.serve((request, response) => {
		const call = new ScriptedCall(request, response);
		calls.push(call);
		for (const waiter of waiting.filter(({ n }) => n === calls.length - 1)) waiter.resolve(call);
		options.script(call);
	});
	const record: ModelRecord = {
		type: "Model",
		namespace,
		component,
		endpoint: "generate",
		instance_id: runtime.instanceId,
		card_json: { ...(await folderCard(options.model, options.folder)), ...options.card },
	};
	if (options.withoutCard !== true) await runtime.discovery.put(record);
	return {
		calls,
		record,
		served,
		call: (n) => {
			const known = calls[n];
			if (known !== undefined) return Promise.resolve(known);
			return new Promise((resolve) => waiting.push({ n, resolve }));
		},
		leave: async () => {
			await runtime.discovery.delete(record);
			await served.stop();
		},
	};
}

/** A script that sends the ids one by one and finishes. */
export function sendAll(ids: readonly number[], finish: WireFinishReason = "length"): Script {
	return (call) => call.tokens(ids).finish(finish).end();
}

/** A script that refuses with an error before anything was sent. */
export function refuse(error: () => DynamoError): Script {
	return (call) => call.fail(error());
}
