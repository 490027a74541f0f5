// SPDX-License-Identifier: Apache-2.0
// What every implementation of the event plane must do.
import type { EventEnvelope, EventScope } from "@dynamo-ts/protocols/internal";
import type { DistributedRuntime, EventListener, EventPublisher, EventSubscription } from "@dynamo-ts/runtime";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { until } from "../child-process.js";

/** A place in which several runtimes can hear each other. */
export interface EventWorld {
	/** The runtime of another process, as far as events are concerned. */
	peer(): Promise<DistributedRuntime>;
	/** Breaks the connections and brings them back; absent where nothing stands between the peers. */
	interrupt?(): Promise<void>;
	dispose(): Promise<void>;
}

export interface EventPlaneTraits {
	/** Publishers write EventChannel records. */
	readonly hasChannels: boolean;
	/** Something stands between the peers, and can go and come back. */
	readonly interruptible: boolean;
	/** Events go by several ways, and one that waited on its way can come after later ones. */
	readonly overtaking?: boolean;
}

const scope = (name = "generate"): EventScope => ({
	kind: "endpoint",
	endpoint: { namespace: "test-ns", component: "back_end", name },
});

class Recorder implements EventListener {
	readonly events: EventEnvelope[] = [];
	readonly gaps: [bigint, bigint, bigint][] = [];
	readonly came: bigint[] = [];
	readonly gone: bigint[] = [];

	onEvent(event: EventEnvelope): void {
		this.events.push({ ...event, payload: Buffer.from(event.payload) });
	}
	onGap(publisherId: bigint, from: bigint, to: bigint): void {
		this.gaps.push([publisherId, from, to]);
	}
	onPublisher(publisherId: bigint): void {
		this.came.push(publisherId);
	}
	onPublisherGone(publisherId: bigint): void {
		this.gone.push(publisherId);
	}
	texts(publisher?: EventPublisher): string[] {
		return this.events
			.filter((event) => publisher === undefined || event.publisherId === publisher.publisherId)
			.map((event) => event.payload.toString());
	}
}

/** Runs the suite. */
export function eventPlaneConformance(
	name: string,
	makeWorld: () => Promise<EventWorld>,
	traits: EventPlaneTraits,
): void {
	describe(`event plane: ${name}`, () => {
		let world: EventWorld;
		let peers: DistributedRuntime[];
		const peer = async (): Promise<DistributedRuntime> => {
			const runtime = await world.peer();
			peers.push(runtime);
			return runtime;
		};
		beforeEach(async () => {
			peers = [];
			world = await makeWorld();
		});
		afterEach(async () => {
			await Promise.all(peers.map((runtime) => runtime.shutdown()));
			await world.dispose();
		});

		/** Sends until the first message arrives, which is the only sign that sockets have met. */
		const meet = async (publisher: EventPublisher, recorder: Recorder): Promise<void> => {
			await until("the first message", () => {
				publisher.publish(Buffer.from("hello"));
				return recorder.texts(publisher).length > 0;
			});
			publisher.publish(Buffer.from("met"));
			await until("the last of the first messages", () => recorder.texts(publisher).includes("met"));
			recorder.events.length = 0;
			recorder.gaps.length = 0;
		};
		const listen = async (
			runtime: DistributedRuntime,
			topic: string,
			where = scope(),
		): Promise<{ recorder: Recorder; subscription: EventSubscription }> => {
			const recorder = new Recorder();
			return { recorder, subscription: await runtime.events.subscribe(where, topic, recorder) };
		};

		it("messages arrive whole, in order, with ids, sequence and time", async () => {
			const [a, b] = [await peer(), await peer()];
			const publisher = await a.events.createPublisher(scope(), "kv-events");
			expect(publisher.publisherId).toBeLessThan(2n ** 53n);
			const { recorder, subscription } = await listen(b, "kv-events");
			await meet(publisher, recorder);
			const first = BigInt(publisher.published);
			const payloads = Array.from({ length: 500 }, (_, i) => Buffer.alloc(1 + ((i * 37) % 3000), i));
			for (const payload of payloads) publisher.publish(payload);
			await until("all messages", () => recorder.events.length === payloads.length);
			for (const [i, event] of recorder.events.entries()) {
				expect(event.publisherId).toBe(publisher.publisherId);
				expect(event.sequence).toBe(first + BigInt(i));
				expect(event.topic).toBe("kv-events");
				expect(Math.abs(Date.now() - event.publishedAt)).toBeLessThan(60_000);
				expect(event.payload.equals(payloads[i]!)).toBe(true);
			}
			expect(recorder.gaps).toEqual([]);
			expect(publisher.dropped).toBe(0);
			expect(subscription.malformed).toBe(0);
		});

		it("a payload's buffer can be used again at once", async () => {
			const [a, b] = [await peer(), await peer()];
			const publisher = await a.events.createPublisher(scope(), "t");
			const { recorder } = await listen(b, "t");
			await meet(publisher, recorder);
			const buffer = Buffer.alloc(64);
			for (let i = 0; i < 20; i++) {
				buffer.fill(i);
				publisher.publish(buffer);
			}
			await until("all messages", () => recorder.events.length === 20);
			expect(recorder.events.map((event) => event.payload[0])).toEqual(Array.from({ length: 20 }, (_, i) => i));
		});

		it("topics and scopes are kept apart, also where one name begins like the other", async () => {
			const [a, b] = [await peer(), await peer()];
			const wanted = await a.events.createPublisher(scope(), "kv");
			const others = await Promise.all([
				a.events.createPublisher(scope(), "kv_metrics"),
				a.events.createPublisher(scope("generate2"), "kv"),
				a.events.createPublisher({ kind: "namespace", name: "test-ns" }, "kv"),
				a.events.createPublisher({ kind: "component", namespace: "test-ns", component: "back_end" }, "kv"),
			]);
			const { recorder, subscription } = await listen(b, "kv");
			await meet(wanted, recorder);
			for (const other of others) other.publish(Buffer.from("not for you"));
			await Promise.all(others.map((other) => other.flush(1000)));
			wanted.publish(Buffer.from("for you"));
			await until("the message", () => recorder.texts().includes("for you"));
			expect(recorder.texts()).toEqual(["for you"]);
			expect(subscription.malformed).toBe(0);
			expect(subscription.publishers).toBe(traits.hasChannels ? 1 : 0);
		});

		it("many publishers to many subscribers, also within one process", async () => {
			const [a, b, c] = [await peer(), await peer(), await peer()];
			const publishers = await Promise.all([a, a, b].map((one) => one.events.createPublisher(scope(), "t")));
			expect(new Set(publishers.map((one) => one.publisherId)).size).toBe(3);
			const listeners = await Promise.all([a, b, c].map((one) => listen(one, "t")));
			for (const publisher of publishers) for (const { recorder } of listeners) await meet(publisher, recorder);
			for (const { recorder } of listeners) recorder.events.length = 0;
			for (let i = 0; i < 50; i++) for (const publisher of publishers) publisher.publish(Buffer.from(`${i}`));
			const expected = Array.from({ length: 50 }, (_, i) => `${i}`);
			for (const { recorder } of listeners) {
				await until("the last ones", () => recorder.events.filter((e) => e.payload.toString() === "49").length === 3);
				for (const publisher of publishers) expect(recorder.texts(publisher).slice(-50)).toEqual(expected);
			}
		});

		it("a publisher that comes later is heard; one that closes leaves discovery", async () => {
			const [a, b] = [await peer(), await peer()];
			const { recorder, subscription } = await listen(b, "t");
			const publisher = await a.events.createPublisher(scope(), "t");
			await meet(publisher, recorder);
			if (traits.hasChannels) {
				expect(recorder.came).toEqual([publisher.publisherId]);
				expect(await b.discovery.list("v1/event_channels")).toHaveLength(1);
			}
			await publisher.close();
			publisher.publish(Buffer.from("after the end"));
			await publisher.close();
			if (traits.hasChannels) {
				await until("the news", () => recorder.gone.length === 1);
				expect(recorder.gone).toEqual([publisher.publisherId]);
			}
			await until("nobody to listen to", () => subscription.publishers === 0);
			expect(await b.discovery.list("v1/event_channels")).toEqual([]);
			expect(recorder.texts()).toEqual([]);
		});

		it("nothing is delivered after a subscription was closed", async () => {
			const [a, b] = [await peer(), await peer()];
			const publisher = await a.events.createPublisher(scope(), "t");
			const closing = await listen(b, "t");
			const staying = await listen(b, "t");
			await meet(publisher, closing.recorder);
			await meet(publisher, staying.recorder);
			await closing.subscription.close();
			closing.recorder.events.length = 0;
			publisher.publish(Buffer.from("more"));
			await until("the message", () => staying.recorder.texts().includes("more"));
			await closing.subscription.close();
			expect(closing.recorder.events).toEqual([]);
		});

		it("counts on the metrics page, by topic", async () => {
			const [a, b] = [await peer(), await peer()];
			const publisher = await a.events.createPublisher(scope(), "t");
			const { recorder, subscription } = await listen(b, "t");
			await meet(publisher, recorder);
			const counted = async (runtime: DistributedRuntime, metric: string): Promise<number> => {
				const line = (await runtime.metrics.scrape()).split("\n").find((one) => one.startsWith(`${metric}{`));
				return Number(line?.split(" ").at(-1));
			};
			expect(await counted(a, "dynamo_component_event_plane_published_total")).toBe(publisher.published);
			expect(await counted(a, "dynamo_component_event_plane_dropped_total")).toBe(0);
			expect(await counted(b, "dynamo_component_event_plane_received_total")).toBe(subscription.received);
		});

		it("what cannot be delivered is dropped, not kept without bound, and seen as a gap or not at all", async () => {
			const [a, b] = [await peer(), await peer()];
			const publisher = await a.events.createPublisher(scope(), "t");
			const { recorder, subscription } = await listen(b, "t");
			await meet(publisher, recorder);
			const before = publisher.published;
			const payload = Buffer.alloc(4096);
			// All in one turn: no transport can send while this runs.
			for (let i = 0; i < 20_000; i++) publisher.publish(payload);
			expect(publisher.dropped).toBeGreaterThan(0);
			await until("a message after the flood", () => {
				publisher.publish(Buffer.from("end"));
				return recorder.texts().includes("end");
			});
			expect(subscription.received + subscription.lost).toBeGreaterThanOrEqual(before + 20_000);
			expect(recorder.gaps.length).toBeGreaterThan(0);
		});

		it("after shutdown nothing can be opened any more", async () => {
			const a = await peer();
			await a.events.createPublisher(scope(), "t");
			await listen(a, "t");
			await a.shutdown();
			await expect(a.events.createPublisher(scope(), "t")).rejects.toMatchObject({ errorClass: "Unavailable" });
			await expect(listen(a, "t")).rejects.toMatchObject({ errorClass: "Unavailable" });
		});

		it.runIf(traits.interruptible)("an interruption heals by itself", async () => {
			const [a, b] = [await peer(), await peer()];
			const publisher = await a.events.createPublisher(scope(), "t");
			const { recorder } = await listen(b, "t");
			await meet(publisher, recorder);
			await world.interrupt?.();
			await until(
				"a message after the interruption",
				() => {
					publisher.publish(Buffer.from("again"));
					return recorder.events.length > 0;
				},
				{ timeoutMs: 20_000 },
			);
			const sequences = recorder.events.map((event) => event.sequence);
			expect(new Set(sequences).size).toBe(sequences.length);
			const late = sequences.filter((one, i) => sequences.slice(0, i).some((earlier) => earlier > one));
			if (!traits.overtaking) expect(late).toEqual([]);
			// Whoever came late was missed before.
			const missed = (one: bigint) => recorder.gaps.some(([, from, to]) => from <= one && one <= to);
			expect(late.filter((one) => !missed(one))).toEqual([]);
		});
	});
}
