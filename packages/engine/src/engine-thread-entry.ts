// SPDX-License-Identifier: Apache-2.0
// The engine thread: loads the model, then steps as long as there is work. Between steps messages are taken from the
// port without a turn of the event loop; when there is nothing to do, the event loop waits for the next one.

import { type MessagePort, parentPort, receiveMessageOnPort, workerData } from "node:worker_threads";
import type { KvLayout } from "./engine.js";
import { EngineCore } from "./engine-core.js";
import type { ModelRunner } from "./model/model-runner.js";
import { writeStats } from "./stats-buffer.js";
import type { EngineThreadData, FromThread, RunnerModule, ToThread } from "./thread-messages.js";

/** A busy loop lets the event loop turn so often, in ms: finalizers and output of the thread need it now and then. */
const TURN_INTERVAL_MS = 500;

function serve(port: MessagePort, core: EngineCore, runner: ModelRunner, stats: Float64Array): void {
	let resuming = false;

	const post = (message: FromThread): void => port.postMessage(message);

	const flush = (): void => {
		const message = core.outputs.take();
		writeStats(stats, core.stats());
		if (message !== undefined) post(message);
	};

	const handle = (message: ToThread): void => {
		switch (message.type) {
			case "submit":
				core.submit(message.handle, message.request, message.fetch);
				break;
			case "readBlocks": {
				const data = core.readHeld(message.id, message.blocks);
				const answer: FromThread = { type: "blocks", read: message.read, data };
				port.postMessage(answer, data === undefined ? [] : [data]);
				break;
			}
			case "releaseHeld":
				core.releaseHeld(message.id);
				break;
			case "writeBlock":
				core.writeFetched(message.handle, message.index, new Uint8Array(message.data));
				break;
			case "fetched":
				core.fetched(message.handle, message.complete);
				break;
			case "abort":
				for (let i = 0; i < message.count; i++) core.abort(message.handle + i);
				break;
			case "reportSteps":
				core.reportSteps = true;
				break;
			case "close":
				runner.close();
				process.exit(0);
		}
	};

	const run = (): void => {
		const turnAt = performance.now() + TURN_INTERVAL_MS;
		for (;;) {
			for (let next = receiveMessageOnPort(port); next !== undefined; next = receiveMessageOnPort(port)) {
				handle(next.message);
			}
			// Nothing planned: what waits waits for a message.
			const worked = core.hasWork && core.step();
			flush();
			if (!worked || !core.hasWork) return;
			if (performance.now() >= turnAt) {
				resuming = true;
				setImmediate(() => {
					resuming = false;
					run();
				});
				return;
			}
		}
	};

	port.on("message", (message: ToThread) => {
		handle(message);
		if (!resuming) run();
	});
}

/** Lazily, so that a thread with another runner never loads ONNX Runtime. */
async function importRunner(url: string | undefined): Promise<RunnerModule> {
	if (url !== undefined) return (await import(url)) as RunnerModule;
	return import("./model/load-model-runner.js");
}

async function main(port: MessagePort): Promise<void> {
	const begin = performance.now();
	const { model, stats, held } = workerData as EngineThreadData;
	const post = (message: FromThread): void => port.postMessage(message);
	const { loadModelRunner } = await importRunner(model.runnerModule);
	const runner = await loadModelRunner({
		model: model.model,
		cacheDir: model.cacheDir,
		quantization: model.quantization ?? "auto",
		maxNumSeqs: model.maxNumSeqs,
		maxModelLen: model.maxModelLen,
		maxNumBatchedTokens: model.maxNumBatchedTokens,
		blockSize: model.blockSize,
		device: model.device,
		cudaLibraryDirs: model.cudaLibraryDirs,
		gpuMemoryUtilization: model.gpuMemoryUtilization,
		enforceEager: model.enforceEager,
		kvCacheMemory: model.kvCacheMemory,
		kvCacheDtype: model.kvCacheDtype,
		intraOpThreads: model.intraOpThreads ?? 1,
		spinning: model.spinning ?? false,
		onProgress: (stage: string, fraction: number) => post({ type: "progress", stage, fraction }),
	});
	const core = new EngineCore(runner, {
		maxNumBatchedTokens: model.maxNumBatchedTokens,
		enablePrefixCaching: model.enablePrefixCaching,
		kvEvents: model.kvEvents,
		speculative: model.speculative,
		heldStates: new Int32Array(held),
	});
	const statsView = new Float64Array(stats);
	writeStats(statsView, core.stats());
	serve(port, core, runner, statsView);
	post({
		type: "ready",
		layout: kvLayout(runner),
		sharedBlocks: runner.sharedBlocks,
		info: {
			modelName: undefined,
			maxModelLen: runner.maxModelLen,
			blockSize: runner.blockSize,
			totalBlocks: core.totalBlocks,
			maxNumSeqs: runner.maxNumSeqs,
			maxNumBatchedTokens: core.maxNumBatchedTokens,
			vocabSize: runner.config.vocabSize,
			device: runner.device,
			deviceNote: runner.deviceNote,
			quantization: model.quantization ?? "auto",
			weightFormats: runner.weightFormats,
			kvBytesPerToken: runner.kvBytesPerToken,
			kvCacheDtype: runner.kvCacheDtype,
			eosTokenIds: runner.config.eosTokenIds,
			loadSeconds: (performance.now() - begin) / 1000,
		},
	});
}

/** What another engine's blocks must agree with. */
function kvLayout(runner: ModelRunner): KvLayout {
	const { numLayers, numKvHeads, headDim } = runner.config;
	return {
		modelSum: runner.modelSum,
		dtype: runner.kvCacheDtype,
		order: runner.blockOrder,
		blockSize: runner.blockSize,
		blockBytes: runner.blockBytes,
		numLayers,
		numKvHeads,
		headDim,
	};
}

if (parentPort === null) throw new Error("engine-thread-entry runs in a worker thread only");
const port = parentPort;
main(port).catch((cause: unknown) => {
	const message = cause instanceof Error ? cause.message : String(cause);
	port.postMessage({ type: "failed", message } satisfies FromThread);
	port.close();
});
