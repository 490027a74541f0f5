// SPDX-License-Identifier: Apache-2.0
// Tells routers how busy a worker is: blocks in use when they change, each step of the engine, prompts that are done.
import type { Engine, LengthSummary, StepReport } from "@dynamo-ts/engine";
import {
	ACTIVE_SEQUENCES_TOPIC,
	type ActiveSequenceEvent,
	type EndpointId,
	encodeActiveSequences,
	encodeForwardPassMetrics,
	encodeWorkerLoad,
	FORWARD_PASS_TOPIC,
	KV_METRICS_TOPIC,
	type PassLoad,
} from "@dynamo-ts/protocols/internal";
import type { DistributedRuntime, EventPublisher } from "@dynamo-ts/runtime";

/** An idle engine is told of this often. */
const IDLE_INTERVAL_MS = 1000;
/** Prompts that are done within one turn of the event loop travel together, up to so many. */
const MAX_BATCH = 1024;

const NONE: LengthSummary = { requests: 0, tokens: 0, variance: 0 };

function passLoad(prefill: LengthSummary, decode: LengthSummary, cachedTokens?: number): PassLoad {
	return {
		numPrefillRequests: prefill.requests,
		sumPrefillTokens: prefill.tokens,
		varPrefillLength: prefill.variance,
		sumPrefillKvTokens: cachedTokens,
		numDecodeRequests: decode.requests,
		sumDecodeKvTokens: decode.tokens,
		varDecodeKvTokens: decode.variance,
	};
}

export class LoadPublisher {
	readonly #workerId: bigint;
	readonly #dpRank: number;
	readonly #engine: Engine;
	readonly #publishers: {
		readonly load: EventPublisher;
		readonly sequences: EventPublisher;
		/** Absent for an engine that makes no reports. */
		readonly steps: EventPublisher | undefined;
	};
	#usedBlocks: number | undefined;
	#steps = 0n;
	#stepped = false;
	#completed: ActiveSequenceEvent[] = [];
	#scheduled: NodeJS.Immediate | undefined;
	#timer: NodeJS.Timeout | undefined;
	#closed = false;

	private constructor(
		runtime: DistributedRuntime,
		engine: Engine,
		dpRank: number,
		publishers: { load: EventPublisher; sequences: EventPublisher; steps: EventPublisher | undefined },
	) {
		this.#workerId = runtime.instanceId;
		this.#dpRank = dpRank;
		this.#engine = engine;
		this.#publishers = publishers;
		engine.onStep?.((report) => this.#onStep(report));
		this.#timer = setInterval(() => this.#idle(), IDLE_INTERVAL_MS);
		this.#timer.unref();
		this.#tellLoad();
	}

	/** @throws DynamoError `Unavailable` when the event plane or discovery cannot be used. */
	static async open(
		runtime: DistributedRuntime,
		engine: Engine,
		endpoint: EndpointId,
		dpRank = 0,
	): Promise<LoadPublisher> {
		const scope = { kind: "endpoint", endpoint } as const;
		const topics = [KV_METRICS_TOPIC, ACTIVE_SEQUENCES_TOPIC];
		if (engine.onStep !== undefined) topics.push(FORWARD_PASS_TOPIC);
		const opened = await Promise.allSettled(topics.map((topic) => runtime.events.createPublisher(scope, topic)));
		const publishers = opened.map((one) => (one.status === "fulfilled" ? one.value : undefined));
		const failed = opened.find((one) => one.status === "rejected");
		if (failed !== undefined) {
			await Promise.all(publishers.map((publisher) => publisher?.close()));
			throw failed.reason;
		}
		const [load, sequences, steps] = publishers as [EventPublisher, EventPublisher, EventPublisher | undefined];
		return new LoadPublisher(runtime, engine, dpRank, { load, sequences, steps });
	}

	/** The first token of a request is there: its prompt weighs on this worker no longer. */
	prefillCompleted(requestId: string): void {
		if (this.#closed) return;
		this.#completed.push({
			requestId,
			worker: { workerId: this.#workerId, dpRank: this.#dpRank },
			change: { type: "prefill_completed" },
			routerId: this.#workerId,
		});
		if (this.#completed.length >= MAX_BATCH) this.#flushCompleted();
		else this.touch();
	}

	/** The engine did something: its load is looked at once this turn of the event loop is over. */
	touch(): void {
		if (this.#scheduled !== undefined || this.#closed) return;
		this.#scheduled = setImmediate(() => {
			this.#scheduled = undefined;
			this.#flushCompleted();
			this.#tellLoad();
		});
	}

	#flushCompleted(): void {
		if (this.#completed.length === 0) return;
		const { sequences } = this.#publishers;
		const form = sequences.transport === "nats" ? "bare" : "batch";
		for (const payload of encodeActiveSequences(this.#completed, form)) sequences.publish(payload);
		this.#completed = [];
	}

	#tellLoad(): void {
		const { usedBlocks } = this.#engine.stats();
		if (usedBlocks === this.#usedBlocks) return;
		this.#usedBlocks = usedBlocks;
		this.#publishers.load.publish(
			encodeWorkerLoad({ workerId: this.#workerId, dpRank: this.#dpRank, kvUsedBlocks: BigInt(usedBlocks) }),
		);
	}

	#onStep(report: StepReport): void {
		if (this.#closed) return;
		this.#stepped = true;
		this.#tellStep(
			report.seconds,
			passLoad(report.prefill, report.decode, report.prefill.cachedTokens),
			passLoad(report.waitingPrefill, report.waitingDecode),
		);
		this.touch();
	}

	#tellStep(wallTime: number, scheduled: PassLoad, queued: PassLoad): void {
		this.#steps++;
		this.#publishers.steps?.publish(
			encodeForwardPassMetrics({
				workerId: this.#workerId,
				dpRank: this.#dpRank,
				counterId: this.#steps,
				wallTime,
				scheduled,
				queued,
			}),
		);
	}

	#idle(): void {
		this.#tellLoad();
		const { running, waiting } = this.#engine.stats();
		if (!this.#stepped && running + waiting === 0) this.#tellStep(0, passLoad(NONE, NONE, 0), passLoad(NONE, NONE));
		this.#stepped = false;
	}

	/** Idempotent. */
	async close(): Promise<void> {
		if (this.#closed) return;
		this.#flushCompleted();
		this.#tellLoad();
		this.#closed = true;
		clearInterval(this.#timer);
		if (this.#scheduled !== undefined) clearImmediate(this.#scheduled);
		const { load, sequences, steps } = this.#publishers;
		await Promise.all([load, sequences, steps].map((publisher) => publisher?.close()));
	}
}
