// SPDX-License-Identifier: Apache-2.0
// An engine's own event socket in vLLM's format, for consumers beside Dynamo's routers: a publishing socket, and one that
// sends again what somebody missed.
import {
	DynamoError,
	encodeVllmBatch,
	encodeVllmSequence,
	type KvCacheEvent,
	VLLM_REPLAY_END,
} from "@dynamo-ts/protocols/internal";
import { loadZmq, SendQueue, socketOptions, type ZmqPublisher, type ZmqRouter } from "@dynamo-ts/runtime/internal";
import { type EngineSocketConfig, endpointOfRank } from "./kv-events-config.js";

const DEFAULT_BUFFER_STEPS = 10_000;
const DEFAULT_HIGH_WATER_MARK = 100_000;
const DEFAULT_MAX_QUEUE = 100_000;
/** A replay that its asker does not read is given up after this, milliseconds per message. */
const REPLAY_SEND_TIMEOUT_MS = 1000;
const EMPTY = Buffer.alloc(0);

interface Batch {
	readonly sequence: bigint;
	readonly payload: Buffer;
}

async function bind(socket: ZmqPublisher | ZmqRouter, endpoint: string): Promise<void> {
	try {
		await socket.bind(endpoint);
	} catch (cause) {
		const text = `KV events cannot be published at ${endpoint}: ${(cause as Error).message}`;
		throw new DynamoError("Unavailable", text, { publicMessage: text, cause });
	}
}

export class EngineSocket {
	readonly #dpRank: number;
	readonly #topic: Buffer;
	readonly #config: EngineSocketConfig;
	readonly #publisher: ZmqPublisher;
	readonly #queue: SendQueue;
	readonly #replay: ZmqRouter | undefined;
	/** The last batches, oldest first, behind `#first`. */
	#kept: Batch[] = [];
	#first = 0;
	#next = 0n;
	#replaying: Promise<void> = Promise.resolve();

	private constructor(
		config: EngineSocketConfig,
		dpRank: number,
		publisher: ZmqPublisher,
		replay: ZmqRouter | undefined,
	) {
		this.#config = config;
		this.#dpRank = dpRank;
		this.#topic = Buffer.from(config.topic ?? "", "utf8");
		this.#publisher = publisher;
		this.#queue = new SendQueue(publisher, config.maxQueueSize ?? DEFAULT_MAX_QUEUE);
		this.#replay = replay;
		if (replay !== undefined) this.#replaying = this.#serve(replay);
	}

	/** @throws DynamoError `Unavailable` when a port is taken, `InvalidArgument` for an endpoint that is none. */
	static async open(config: EngineSocketConfig, dpRank = 0): Promise<EngineSocket> {
		const endpoint = endpointOfRank(config.endpoint, dpRank);
		const replayEndpoint =
			config.replayEndpoint === undefined ? undefined : endpointOfRank(config.replayEndpoint, dpRank);
		const zmq = await loadZmq();
		const publisher = new zmq.Publisher({
			...socketOptions([endpoint]),
			sendHighWaterMark: config.highWaterMark ?? DEFAULT_HIGH_WATER_MARK,
		});
		let replay: ZmqRouter | undefined;
		try {
			await bind(publisher, endpoint);
			if (replayEndpoint !== undefined) {
				replay = new zmq.Router({ ...socketOptions([replayEndpoint]), sendTimeout: REPLAY_SEND_TIMEOUT_MS });
				await bind(replay, replayEndpoint);
			}
		} catch (error) {
			publisher.close();
			replay?.close();
			throw error;
		}
		return new EngineSocket(config, dpRank, publisher, replay);
	}

	/** Publishes changes as one batch. */
	publish(events: readonly KvCacheEvent[]): void {
		if (events.length === 0 || this.#publisher.closed) return;
		const batch = {
			sequence: this.#next++,
			payload: Buffer.from(encodeVllmBatch(Date.now() / 1000, events, this.#dpRank)),
		};
		if (this.#replay !== undefined) this.#keep(batch);
		this.#queue.push([this.#topic, encodeVllmSequence(batch.sequence), batch.payload]);
	}

	#keep(batch: Batch): void {
		this.#kept.push(batch);
		const limit = this.#config.bufferSteps ?? DEFAULT_BUFFER_STEPS;
		if (this.#kept.length - this.#first > limit) this.#first++;
		// Now and then, so that each batch is moved once at most.
		if (this.#first >= limit) {
			this.#kept = this.#kept.slice(this.#first);
			this.#first = 0;
		}
	}

	/** One asker after the other: a socket takes one send at a time. */
	async #serve(replay: ZmqRouter): Promise<void> {
		for (;;) {
			let frames: Buffer[];
			try {
				frames = await replay.receive();
			} catch {
				return;
			}
			const [asker, delimiter, start] = frames;
			if (frames.length !== 3 || asker === undefined || delimiter?.length !== 0 || start?.length !== 8) continue;
			const head = this.#config.replayTopic === true ? [asker, EMPTY, this.#topic] : [asker, EMPTY];
			const from = start.readBigUInt64BE();
			const oldest = this.#kept[this.#first]?.sequence ?? this.#next;
			const skipped = from > oldest ? Number(from - oldest) : 0;
			const batches = this.#kept.slice(this.#first + skipped);
			try {
				for (const { sequence, payload } of batches) {
					await replay.send([...head, encodeVllmSequence(sequence), payload]);
				}
				await replay.send([...head, encodeVllmSequence(VLLM_REPLAY_END), EMPTY]);
			} catch {
				// The asker is gone or reads nothing: it can ask again.
				if (replay.closed) return;
			}
		}
	}

	/** Idempotent. */
	async close(): Promise<void> {
		this.#queue.close();
		if (!this.#publisher.closed) this.#publisher.close();
		if (this.#replay !== undefined && !this.#replay.closed) this.#replay.close();
		await this.#replaying;
	}
}
