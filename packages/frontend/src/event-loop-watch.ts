// SPDX-License-Identifier: Apache-2.0
// How late ticks of the event loop come: what a frontend cannot do while it does something else.
import { METRICS } from "@dynamo-ts/protocols/internal";
import { type MetricsRegistry, openCounter, openHistogram } from "@dynamo-ts/runtime/internal";

/** How often the event loop's delay is sampled, milliseconds; a later tick by more than the stall limit is a stall. */
const SAMPLE_MS = 10;
const STALL_MS = 5;

/** @returns how to end it. */
export function watchEventLoop(registry: MetricsRegistry): () => void {
	const delay = openHistogram(registry, METRICS.frontend.eventLoopDelaySeconds);
	const stalls = openCounter(registry, METRICS.frontend.eventLoopStallTotal);
	let last = performance.now();
	const timer = setInterval(() => {
		const now = performance.now();
		const drift = Math.max(0, now - last - SAMPLE_MS);
		last = now;
		delay.observe(drift / 1000);
		if (drift > STALL_MS) stalls.inc();
	}, SAMPLE_MS);
	timer.unref();
	return () => clearInterval(timer);
}
