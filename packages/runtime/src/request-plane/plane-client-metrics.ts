// SPDX-License-Identifier: Apache-2.0
// What the sending side of the request plane does. Bytes and gauges are plain numbers that reach the page at a scrape: a
// frame of each stream passes here.
import { METRICS } from "@dynamo-ts/protocols/internal";
import type { Counter, Histogram, MetricsRegistry } from "../observability/metrics.js";
import { openCounter, openGauge, openHistogram } from "../observability/open-family.js";

/** Times are those of `performance.now()`. */
export class PlaneClientMetrics {
	readonly #queue: Histogram;
	readonly #send: Histogram;
	readonly #roundtrip: Histogram;
	readonly #errors: Counter;
	readonly #backoff: Counter;
	#inflight = 0;
	#sentBytes = 0;
	#receivedBytes = 0;

	/**
	 * @param plane the registry of the request plane's families.
	 * @param transport the registry of the transport's families.
	 */
	constructor(plane: MetricsRegistry, transport: MetricsRegistry) {
		this.#queue = openHistogram(plane, METRICS.requestPlane.queueSeconds);
		this.#send = openHistogram(plane, METRICS.requestPlane.sendSeconds);
		this.#roundtrip = openHistogram(plane, METRICS.requestPlane.roundtripTtftSeconds);
		this.#errors = openCounter(transport, METRICS.transport.tcpErrorsTotal);
		this.#backoff = openCounter(transport, METRICS.transport.tcpAcceptBackoffTotal);
		const inflight = openGauge(plane, METRICS.requestPlane.inflightRequests);
		const sent = openCounter(transport, METRICS.transport.tcpBytesSentTotal);
		const received = openCounter(transport, METRICS.transport.tcpBytesReceivedTotal);
		plane.addUpdateCallback(() => {
			inflight.set(this.#inflight);
			sent.inc(this.#sentBytes);
			received.inc(this.#receivedBytes);
			this.#sentBytes = 0;
			this.#receivedBytes = 0;
		});
	}

	/** A request begins; {@link ended} follows. */
	began(): void {
		this.#inflight++;
	}

	/** It is handed to the transport. */
	handedOver(since: number, bytes: number): void {
		this.#queue.observe((performance.now() - since) / 1000);
		this.#sentBytes += bytes;
	}

	/** The worker has it. */
	acknowledged(since: number): void {
		this.#send.observe((performance.now() - since) / 1000);
	}

	firstItem(since: number): void {
		this.#roundtrip.observe((performance.now() - since) / 1000);
	}

	received(bytes: number): void {
		this.#receivedBytes += bytes;
	}

	/** It could not be sent, or nobody acknowledged it in time. */
	sendFailed(): void {
		this.#errors.inc();
	}

	/** It was not sent because descriptors run out. */
	heldBack(): void {
		this.#backoff.inc();
	}

	ended(): void {
		this.#inflight--;
	}
}
