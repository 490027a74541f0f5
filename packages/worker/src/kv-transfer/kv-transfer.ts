// SPDX-License-Identifier: Apache-2.0
// Hand-over of prompts between workers: a prefill worker keeps what it computed, a decode worker fetches it. Whatever goes
// wrong, the decode worker computes the prompt itself.
import type { Engine, EngineOutput, EngineRequest, KvFetch, KvPort } from "@dynamo-ts/engine";
import { ENV } from "@dynamo-ts/protocols/internal";
import { type DistributedRuntime, EnvReader, type Logger, type MetricsRegistry } from "@dynamo-ts/runtime";
import { advertisedHost, rateLimited } from "@dynamo-ts/runtime/internal";
import { HoldRegistry } from "./hold-registry.js";
import type { PullFailure } from "./pull-connection.js";
import { Puller } from "./puller.js";
import { sharedMemoryId, sweepSegments } from "./shared-segment.js";
import { TransferMetrics } from "./transfer-metrics.js";
import {
	fingerprint,
	isSamePrompt,
	type KvTransferParams,
	parseDisaggregatedParams,
	promptHashes,
	toDisaggregatedParams,
} from "./transfer-params.js";
import { TransferServer } from "./transfer-server.js";

/** How prompts are handed over. */
export interface KvTransferConfig {
	/** Listener of a prefill worker; 0: any free port. */
	readonly port: number;
	/** Longest time to fetch a prompt; then it is computed. Milliseconds. */
	readonly timeoutMs: number;
	/** Longest time that a prefill worker keeps a prompt. Milliseconds. */
	readonly holdMs: number;
	/** Whether shared memory is used between workers of one machine. */
	readonly sharedMemory: boolean;
}

/** @throws DynamoError `InvalidArgument` for a value that is not valid. */
export function kvTransferConfigFromEnv(env: NodeJS.ProcessEnv): KvTransferConfig {
	const read = new EnvReader(env);
	const portName = env[ENV.DYN_KV_TRANSFER_PORT] ? ENV.DYN_KV_TRANSFER_PORT : ENV.VLLM_NIXL_SIDE_CHANNEL_PORT;
	return {
		port: read.integer(portName, 0, 0, 65_535),
		timeoutMs: read.seconds(ENV.DYN_KV_TRANSFER_TIMEOUT_SECS, 10),
		holdMs: read.seconds(ENV.DYN_KV_TRANSFER_HOLD_SECS, 60),
		sharedMemory: read.choice(ENV.DYN_KV_TRANSFER_TRANSPORT, ["auto", "tcp"], "auto") === "auto",
	};
}

/** Why a prompt was computed although a prefill worker had it. */
type FailureReason = PullFailure | "not_held" | "not_ours" | "mismatch" | "prompt";

/** A request's way to its prompt's keys and values. */
export interface PromptSource {
	/** For `EngineRequest.fetchKv`. */
	readonly fetchKv: (fetch: KvFetch) => void;
	/** Whether the prompt came from the prefill worker. */
	readonly fetched: boolean;
	/** The first token is there, or the request has ended: what was not fetched by now is not needed. Idempotent. */
	settle(): void;
}

export interface KvTransferOptions {
	/** Started. */
	readonly engine: Engine;
	readonly modelName: string;
	readonly metrics: MetricsRegistry;
	readonly config: KvTransferConfig;
	/** Prompts are kept for others. */
	readonly keeps: boolean;
}

export class KvTransfer {
	readonly #options: KvTransferOptions;
	readonly #kv: KvPort;
	readonly #metrics: TransferMetrics;
	readonly #puller: Puller;
	readonly #log: Logger;
	readonly #fingerprint: string;
	readonly #memory: string;
	readonly #host: string;
	#holds: HoldRegistry | undefined;
	#server: TransferServer | undefined;

	private constructor(runtime: DistributedRuntime, options: KvTransferOptions, kv: KvPort) {
		const { config, engine, metrics, modelName } = options;
		this.#options = options;
		this.#kv = kv;
		this.#metrics = new TransferMetrics(metrics, modelName, () => engine.stats().heldBlocks);
		this.#log = rateLimited(runtime.log.child("dynamo_worker::kv_transfer"));
		this.#fingerprint = fingerprint(kv.layout);
		this.#memory = (config.sharedMemory ? sharedMemoryId() : undefined) ?? "";
		this.#host = advertisedHost(runtime.config.tcpRpcHost);
		const connectTimeoutMs = runtime.config.tcpConnectTimeoutMs;
		this.#puller = new Puller({ tls: runtime.tcpTls().client, connectTimeoutMs });
	}

	/**
	 * @returns undefined for an engine that hands nothing over.
	 * @throws DynamoError `Unavailable` when a prefill worker's address cannot be listened on.
	 */
	static async open(runtime: DistributedRuntime, options: KvTransferOptions): Promise<KvTransfer | undefined> {
		const { kv } = options.engine;
		if (kv === undefined) return undefined;
		const transfer = new KvTransfer(runtime, options, kv);
		if (options.config.sharedMemory) await sweepSegments();
		if (options.keeps) await transfer.#listen(runtime);
		return transfer;
	}

	async #listen(runtime: DistributedRuntime): Promise<void> {
		const { config } = this.#options;
		this.#holds = new HoldRegistry(this.#kv, config.holdMs, (outcome) => this.#metrics.hold(outcome));
		this.#server = await TransferServer.listen({
			kv: this.#kv,
			holds: this.#holds,
			host: runtime.config.tcpRpcHost,
			port: config.port,
			tls: runtime.tcpTls().server,
			sharedMemory: this.#memory !== "",
			log: this.#log,
			onSent: (bytes, transport) => this.#metrics.bytes("sent", transport, bytes),
		});
	}

	/** What goes to the decode worker with the last output of a request whose prompt was to be kept. */
	keep(output: EngineOutput, { tokenIds, cacheSalt }: EngineRequest): unknown {
		const { held } = output;
		if (held === undefined || this.#holds === undefined || this.#server === undefined) {
			this.#metrics.hold("no_room");
			return toDisaggregatedParams(null);
		}
		return toDisaggregatedParams({
			host: this.#host,
			port: this.#server.port,
			handle: this.#holds.add(held),
			fingerprint: this.#fingerprint,
			...promptHashes(tokenIds, this.#kv.layout.blockSize, cacheSalt ?? ""),
			memory: this.#memory,
		});
	}

	/** Nobody will get the output that says where the prompt is: it is not kept. */
	drop(output: EngineOutput): void {
		if (output.held === undefined) return;
		this.#kv.release(output.held.id);
		this.#metrics.hold("released");
	}

	/**
	 * Where a request's prompt can be fetched.
	 * @param params `prefill_result.disaggregated_params`, as it came.
	 * @returns undefined when it must be computed.
	 */
	source(params: unknown, { tokenIds, cacheSalt }: EngineRequest): PromptSource | undefined {
		const read = parseDisaggregatedParams(params);
		if (read === null || read === undefined) {
			this.#failed(read === null ? "not_held" : "not_ours");
			return undefined;
		}
		if (read.fingerprint !== this.#fingerprint) {
			this.#failed("mismatch", read);
			return undefined;
		}
		if (!isSamePrompt(read, promptHashes(tokenIds, this.#kv.layout.blockSize, cacheSalt ?? ""))) {
			this.#failed("prompt", read);
			return undefined;
		}
		return this.#sourceOf(read);
	}

	#sourceOf(params: KvTransferParams): PromptSource {
		const source = { ...params, mayShare: this.#memory !== "" && this.#memory === params.memory };
		let state: "waiting" | "fetching" | "fetched" | "over" = "waiting";
		return {
			fetchKv: (fetch) => {
				state = "fetching";
				void this.#fetch(source, params, fetch).then((there) => {
					state = there ? "fetched" : "over";
				});
			},
			get fetched() {
				return state === "fetched";
			},
			settle: () => {
				if (state !== "waiting") return;
				state = "over";
				this.#metrics.pull("cached");
				this.#puller.release(source);
			},
		};
	}

	/** @returns whether all is there. */
	async #fetch(
		source: KvTransferParams & { readonly mayShare: boolean },
		params: KvTransferParams,
		fetch: KvFetch,
	): Promise<boolean> {
		const { layout } = this.#kv;
		const begin = performance.now();
		const outcome = await this.#puller.pull(source, fetch, layout.blockBytes, this.#options.config.timeoutMs);
		const there = outcome.failure === undefined;
		fetch.finish(there);
		if (outcome.bytes > 0) this.#metrics.bytes("received", outcome.transport, outcome.bytes);
		if (there) {
			this.#metrics.pull("ok");
			this.#metrics.transferred((performance.now() - begin) / 1000);
		} else if (fetch.signal.aborted) this.#metrics.pull("cancelled");
		else this.#failed(outcome.failure, params);
		return there;
	}

	#failed(reason: FailureReason, params?: KvTransferParams): void {
		this.#metrics.pull("failed", reason);
		const from = params === undefined ? {} : { host: params.host, port: params.port };
		this.#log.warn("a prompt is computed here, though a prefill worker had it", { reason, ...from });
	}

	/**
	 * Waits until what is kept has been fetched.
	 * @param timeoutMs longest wait.
	 */
	async drain(timeoutMs: number): Promise<void> {
		const until = performance.now() + timeoutMs;
		while ((this.#holds?.size ?? 0) > 0 && performance.now() < until) {
			await new Promise((resolve) => setTimeout(resolve, 20));
		}
	}

	async close(): Promise<void> {
		this.#puller.close();
		await this.#server?.close();
		this.#holds?.releaseAll();
	}
}
