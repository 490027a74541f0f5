// SPDX-License-Identifier: Apache-2.0
import { readFile } from "node:fs/promises";
import { createMockEngine, type MockEngineOptions } from "@dynamo-ts/engine";
import type { EndpointId } from "@dynamo-ts/protocols/internal";
import type { DistributedRuntime, EndpointHandler } from "@dynamo-ts/runtime";
import { advertisedHost } from "@dynamo-ts/runtime/internal";
import type { KvEventsConfig } from "./kv-events/kv-events-config.js";
import { awaitMeetings } from "./meeting/await-meetings.js";
import { MeetingServer } from "./meeting/meeting-server.js";
import type { ModelFiles } from "./model-files.js";
import { startWorker, type WorkerHandle } from "./worker.js";
import type { WorkerRole } from "./worker-role.js";

export interface MockerOptions {
	readonly files: ModelFiles;
	readonly modelName: string;
	readonly sourcePath: string;
	/** Default aggregated. */
	readonly role?: WorkerRole | undefined;
	readonly endpoint?: EndpointId | undefined;
	/** Of a prefill worker: where decode workers wait for prompts, so that both can have a request at once. */
	readonly bootstrapPort?: number | undefined;
	/** How frontends are to route to it, as Dynamo writes that into the card; absent: as they like. */
	readonly routerConfig?: Readonly<Record<string, unknown>> | undefined;
	/** What is told of the simulated cache; default: to routers, of a decode worker's nothing. */
	readonly kvEvents?: KvEventsConfig | undefined;
	/** The simulation; vocabulary and ids to generate come from the model's tokenizer. */
	readonly engine: Omit<MockEngineOptions, "modelName" | "vocabSize" | "tokenIdRange">;
}

/**
 * Starts a worker with a simulated engine. As with Dynamo's mocker a request must say max_tokens, and the card shows
 * a context length of 0 unless there is a limit.
 */
export async function startMocker(runtime: DistributedRuntime, options: MockerOptions): Promise<WorkerHandle> {
	const vocabulary = await readVocabulary(options.files.tokenizer);
	const host = runtime.config.tcpRpcHost;
	const { bootstrapPort, role } = options;
	const meetings =
		bootstrapPort === undefined
			? undefined
			: await MeetingServer.listen(host, bootstrapPort, runtime.log.child("dynamo_mocker"));
	const engine = createMockEngine({ ...options.engine, modelName: options.modelName, ...vocabulary });
	const wrapHandler =
		role === "decode" ? awaitMeetings : meetings && ((handler: EndpointHandler) => meetings.announce(handler));
	const worker = await startWorker(runtime, {
		engine,
		wrapHandler,
		meetingPoint: bootstrapPort === undefined ? undefined : { host: advertisedHost(host), port: bootstrapPort },
		files: options.files,
		modelName: options.modelName,
		sourcePath: options.sourcePath,
		role,
		endpoint: options.endpoint,
		kvEvents: options.kvEvents,
		routerConfig: options.routerConfig,
		requireMaxTokens: true,
		cardContextLength: options.engine.maxModelLen ?? 0,
	}).catch(async (error: unknown) => {
		await meetings?.close();
		throw error;
	});
	return meetings === undefined ? worker : withEnd(worker, () => meetings.close());
}

/** The worker, whose end includes that of something else. */
function withEnd(worker: WorkerHandle, end: () => Promise<void>): WorkerHandle {
	return {
		info: worker.info,
		card: worker.card,
		failed: worker.failed,
		get inflight() {
			return worker.inflight;
		},
		drain: (timeoutMs) => worker.drain(timeoutMs),
		close: async () => {
			await worker.close();
			await end();
		},
	};
}

interface TokenizerJson {
	readonly added_tokens?: readonly { readonly id: number; readonly special?: boolean }[];
	readonly model?: { readonly vocab?: Readonly<Record<string, number>> | readonly unknown[] };
}

/**
 * The size of a vocabulary, and the longest run of ids without a special token: what is generated must be text, and
 * no token of it may end the stream.
 * @throws SyntaxError when the file is no JSON.
 */
export async function readVocabulary(
	tokenizerPath: string,
): Promise<{ vocabSize: number; tokenIdRange: readonly [number, number] }> {
	const json = JSON.parse(await readFile(tokenizerPath, "utf8")) as TokenizerJson;
	const vocab = json.model?.vocab;
	let size = 0;
	if (Array.isArray(vocab)) size = vocab.length;
	else for (const id of Object.values((vocab ?? {}) as Record<string, number>)) size = Math.max(size, id + 1);
	const special: number[] = [];
	for (const token of json.added_tokens ?? []) {
		size = Math.max(size, token.id + 1);
		if (token.special === true) special.push(token.id);
	}
	special.sort((a, b) => a - b);
	let best: [number, number] = [0, size];
	if (special.length > 0) {
		best = [0, 0];
		let from = 0;
		for (const id of [...special, size]) {
			if (id - from > best[1] - best[0]) best = [from, id];
			from = id + 1;
		}
	}
	return { vocabSize: size, tokenIdRange: best[0] < best[1] ? best : [0, size] };
}
