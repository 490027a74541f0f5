// SPDX-License-Identifier: Apache-2.0
// Attaches an engine that publishes KV events in vLLM's format: its events appear on the event plane as those of a worker.
import {
	DynamoError,
	decodeVllmBatch,
	type EndpointId,
	encodeVllmSequence,
	VLLM_REPLAY_END,
	type VllmEventBatch,
} from "@dynamo-ts/protocols/internal";
import type { DistributedRuntime } from "@dynamo-ts/runtime";
import {
	loadZmq,
	rateLimited,
	readSocket,
	socketOptions,
	type Zmq,
	type ZmqSubscriber,
} from "@dynamo-ts/runtime/internal";
import { KvEventPublisher } from "./kv-event-publisher.js";
import { VllmConverter } from "./vllm-converter.js";

export interface KvEventsRelayOptions {
	/** The engine's publishing socket, `tcp://host:port`. */
	readonly engineEndpoint: string;
	/** Where it sends again what was missed; absent: what is lost is lost, and routers start from nothing. */
	readonly replayEndpoint?: string | undefined;
	/** First frame of its messages; default: any. */
	readonly topic?: string | undefined;
	/** The endpoint whose worker the engine is. */
	readonly endpoint: EndpointId;
	/** Default: this process is the worker. */
	readonly workerId?: bigint | undefined;
	/** Data-parallel rank; default 0. Batches of other ranks are left out. */
	readonly dpRank?: number | undefined;
	/** Tokens per block; must be that of the model card. */
	readonly blockSize: number;
}

/** A running relay. */
export interface KvEventsRelay {
	/** Batches read. */
	readonly batches: number;
	/** Batches that were missed and did not come back. */
	readonly lost: number;
	/** Batches and events that could not be read or told. */
	readonly refused: number;
	/** Blocks that routers are told the engine holds. */
	readonly blocks: number;
	/** Rejects when the engine's blocks have another size than the card's: nothing it tells can be of use. */
	readonly failed: Promise<never>;
	close(): Promise<void>;
}

const REPLAY_TIMEOUT_MS = 5000;
/** Live batches that may wait while missed ones are fetched; more, and the engine's cache is taken for unknown. */
const MAX_WAITING = 10_000;
/** Most messages of one replay that are read; engines keep 10000 batches unless told otherwise. */
const MAX_REPLAYED = 100_000;

/**
 * Attaches the engine. When the promise resolves, routers can find the source of its events; the engine itself may
 * come later, and go and come back.
 * @throws DynamoError `Unavailable` when the event plane or discovery cannot be used, `InvalidArgument` for an endpoint
 * that is none.
 */
export async function relayKvEvents(
	runtime: DistributedRuntime,
	options: KvEventsRelayOptions,
): Promise<KvEventsRelay> {
	for (const endpoint of [options.engineEndpoint, options.replayEndpoint]) {
		if (endpoint === undefined || /^tcp:\/\/[^\s/*]+:\d{1,5}$/.test(endpoint)) continue;
		const text = `engine endpoint ${JSON.stringify(endpoint)} must be tcp://host:port`;
		throw new DynamoError("InvalidArgument", text, { publicMessage: text });
	}
	const zmq = await loadZmq();
	const { endpoint, workerId, dpRank, blockSize } = options;
	const publisher = await KvEventPublisher.open(runtime, { endpoint, workerId, dpRank, blockSize });
	return new Relay(runtime, zmq, publisher, options);
}

class Relay implements KvEventsRelay {
	batches = 0;
	lost = 0;
	refused = 0;
	readonly failed: Promise<never>;
	readonly #options: KvEventsRelayOptions;
	readonly #dpRank: number;
	readonly #zmq: Zmq;
	readonly #publisher: KvEventPublisher;
	readonly #converter: VllmConverter;
	readonly #socket: ZmqSubscriber;
	readonly #reading: Promise<void>;
	readonly #abort = new AbortController();
	readonly #log;
	/** Sequence of the next batch; undefined before the first. */
	#next: bigint | undefined;
	/** Batches that wait for missed ones; undefined when nothing is missing. */
	#waiting: Map<bigint, Buffer> | undefined;
	#fetching: Promise<void> = Promise.resolve();
	#fail: (error: Error) => void = () => {};
	#closed = false;

	constructor(runtime: DistributedRuntime, zmq: Zmq, publisher: KvEventPublisher, options: KvEventsRelayOptions) {
		this.#options = options;
		this.#dpRank = options.dpRank ?? 0;
		this.#zmq = zmq;
		this.#publisher = publisher;
		this.#converter = new VllmConverter(options.blockSize);
		this.#log = rateLimited(runtime.log.child("dynamo_llm::kv_router::publisher"));
		this.failed = new Promise((_, reject) => {
			this.#fail = reject;
		});
		this.failed.catch(() => {});
		this.#socket = new zmq.Subscriber(socketOptions([options.engineEndpoint]));
		this.#socket.connect(options.engineEndpoint);
		this.#socket.subscribe(options.topic ?? "");
		this.#reading = readSocket(this.#socket, (frames) => this.#onMessage(frames));
	}

	get blocks(): number {
		return this.#publisher.blocks;
	}

	#onMessage(frames: Buffer[]): void {
		const [topic, sequence, payload] = frames;
		if (frames.length !== 3 || sequence?.length !== 8 || payload === undefined) {
			this.#refuse(`a message of ${frames.length} frames`);
			return;
		}
		if (this.#options.topic !== undefined && topic?.toString("utf8") !== this.#options.topic) return;
		this.#onBatch(sequence.readBigUInt64BE(), payload);
	}

	#onBatch(sequence: bigint, payload: Buffer): void {
		if (this.#closed) return;
		if (this.#waiting !== undefined) {
			if (this.#waiting.size < MAX_WAITING) this.#waiting.set(sequence, payload);
			return;
		}
		// Younger than the engine: what it stored before may still be had.
		const expected = this.#next ?? 0n;
		if (sequence === expected) {
			this.#next = sequence + 1n;
			this.#tell(payload);
			return;
		}
		this.#waiting = new Map([[sequence, payload]]);
		if (sequence < expected) {
			this.#log.warn("the engine counts its KV events anew: it was started again", { expected, sequence });
			this.#forget();
			this.#next = 0n;
		}
		this.#fetching = this.#fetch(this.#next ?? 0n).catch((error: unknown) => this.#refuse(error));
	}

	/** Asks for what was missed, then goes on with what came meanwhile. */
	async #fetch(from: bigint): Promise<void> {
		const missed = await this.#replay(from);
		if (this.#closed) return;
		const waiting = this.#waiting ?? new Map<bigint, Buffer>();
		this.#waiting = undefined;
		const all = new Map([...missed, ...waiting]);
		const sequences = [...all.keys()].sort((a, b) => (a < b ? -1 : 1));
		// Before the first batch that can be had nothing is known, so nothing is lost.
		this.#next ??= sequences[0] ?? from;
		for (const sequence of sequences) {
			if (sequence < this.#next) continue;
			if (sequence > this.#next) {
				const gap = sequence - this.#next;
				this.lost += Number(gap);
				this.#publisher.countEngineDropped(Number(gap));
				this.#log.warn("KV events of the engine are lost for good: routers forget its blocks", {
					from: this.#next,
					gap,
				});
				this.#forget();
			}
			this.#next = sequence + 1n;
			this.#tell(all.get(sequence) as Buffer);
			if (this.#closed) return;
		}
	}

	/** Batches from a sequence on, as far as the engine still has them. */
	async #replay(from: bigint): Promise<Map<bigint, Buffer>> {
		const found = new Map<bigint, Buffer>();
		const { replayEndpoint, topic } = this.#options;
		if (replayEndpoint === undefined) return found;
		const dealer = new this.#zmq.Dealer({
			...socketOptions([replayEndpoint]),
			receiveTimeout: REPLAY_TIMEOUT_MS,
			sendTimeout: REPLAY_TIMEOUT_MS,
		});
		const stop = (): void => dealer.close();
		this.#abort.signal.addEventListener("abort", stop, { once: true });
		try {
			dealer.connect(replayEndpoint);
			await dealer.send([Buffer.alloc(0), encodeVllmSequence(from)]);
			// An engine that never comes to an end must not hold up what it tells now.
			for (let received = 0; received <= MAX_REPLAYED; received++) {
				const frames = await dealer.receive();
				// vLLM: delimiter, sequence, payload. Dynamo's mocker: delimiter, topic, sequence, payload.
				const [sequence, payload] = frames.slice(-2);
				if (sequence?.length !== 8 || payload === undefined)
					throw new Error(`a replayed message of ${frames.length} frames`);
				const id = sequence.readBigUInt64BE();
				if (id === VLLM_REPLAY_END) break;
				found.set(id, payload);
			}
		} catch (error) {
			if (!this.#closed) {
				this.#log.warn("the engine does not send again what was missed", {
					endpoint: replayEndpoint,
					topic,
					error,
				});
			}
		} finally {
			this.#abort.signal.removeEventListener("abort", stop);
			if (!dealer.closed) dealer.close();
		}
		return found;
	}

	#forget(): void {
		this.#converter.clear();
		this.#publisher.publishChanges([{ data: { type: "cleared" } }]);
	}

	#tell(payload: Buffer): void {
		let batch: VllmEventBatch;
		try {
			batch = decodeVllmBatch(payload);
		} catch (error) {
			this.#refuse(error);
			return;
		}
		this.batches++;
		if (batch.dpRank !== undefined && batch.dpRank !== this.#dpRank) return;
		try {
			this.#publisher.publishChanges(this.#converter.convert(batch.events));
		} catch (error) {
			this.#log.error("the engine's KV events are of no use", { error });
			this.#fail(error as Error);
			void this.close();
		}
	}

	#refuse(error: unknown): void {
		this.refused++;
		this.#log.warn("KV events of the engine could not be read", {
			endpoint: this.#options.engineEndpoint,
			error,
		});
	}

	async close(): Promise<void> {
		if (!this.#closed) {
			this.#closed = true;
			this.#abort.abort();
			this.#socket.close();
		}
		await Promise.all([this.#reading, this.#fetching, this.#publisher.close()]);
	}
}
