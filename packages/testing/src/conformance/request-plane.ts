// SPDX-License-Identifier: Apache-2.0
import { randomUUID } from "node:crypto";
import { DynamoError, type EndpointRecord } from "@dynamo-ts/protocols/internal";
import type {
	ActiveRequest,
	CancelKind,
	EndpointHandler,
	EndpointRegistration,
	IngressRequest,
	RequestOptions,
	RequestPlaneClient,
	RequestPlaneServer,
	ResponseWriter,
} from "@dynamo-ts/runtime/internal";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { until } from "../child-process.js";
import { CollectingSink } from "../collecting-sink.js";

/** A worker's and a client's end of one request plane. */
export interface RequestPlaneWorld {
	readonly server: RequestPlaneServer;
	readonly client: RequestPlaneClient;
	/** The record under which `path` is found. */
	instance(path: string): EndpointRecord;
	/** What a response may pile up for a client that does not read, in the writer's unit. */
	readonly bufferLimit: number;
	/** Bytes of the largest request message that is taken; undefined: any. */
	readonly largestRequest: number | undefined;
	dispose(): Promise<void>;
}

const PATH = "ab12/dynamo/backend/generate";

/** What every request plane must do. */
export function requestPlaneConformance(name: string, open: () => Promise<RequestPlaneWorld>): void {
	describe(`request plane conformance - ${name}`, () => {
		let world: RequestPlaneWorld;
		let registration: EndpointRegistration;
		let requests: IngressRequest[];
		let responses: ResponseWriter[];
		let cancels: CancelKind[];
		let sinks: CollectingSink[];

		beforeEach(async () => {
			world = await open();
			requests = [];
			responses = [];
			cancels = [];
			sinks = [];
		});
		afterEach(async () => {
			await until("nothing under way at the worker", () => registration.inflight === 0);
			await world.client.close();
			await world.server.close();
			await world.dispose();
			for (const sink of sinks) expect(sink.ends).toBe(1);
		});

		/** Serves; each request is kept for the test, and `handler` runs. */
		const serve = async (handler: EndpointHandler = () => {}) => {
			registration = world.server.register(PATH, (request, response) => {
				requests.push(request);
				responses.push(response);
				request.onCancel((kind) => cancels.push(kind));
				return handler(request, response);
			});
			await registration.ready();
		};
		const send = (payload: unknown, options?: RequestOptions): { sink: CollectingSink; call: ActiveRequest } => {
			const sink = new CollectingSink();
			sinks.push(sink);
			const headers = { traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01" };
			const call = world.client.send(world.instance(PATH), { id: randomUUID(), payload, headers }, sink, options);
			return { sink, call };
		};
		const accepted = (count = 1) => until("the request at the worker", () => responses.length === count);
		const firstItem = (sink: CollectingSink) =>
			new Promise<void>((resolve) => {
				if (sink.items.length > 0) resolve();
				else sink.onFirst = resolve;
			});

		it("carries a request and its responses", async () => {
			await serve((_request, response) => {
				response.send({ data: { token_ids: [1, 2], text: "héllo\n" } });
				response.send({ data: { token_ids: [], finish_reason: "stop" }, id: "x" });
				response.end();
				expect(response.closed).toBe(true);
			});
			const payload = { token_ids: [5, 6, 7], annotations: [], routing: { big: 18446744073709551615n } };
			const { sink, call } = send(payload);
			await sink.done;
			expect(sink.error).toBeUndefined();
			expect(sink.items).toEqual([
				{ data: { token_ids: [1, 2], text: "héllo\n" } },
				{ data: { token_ids: [], finish_reason: "stop" }, id: "x" },
			]);
			expect(requests[0]?.id).toBe(call.id);
			expect(requests[0]?.payload).toEqual(payload);
			expect(requests[0]?.headers).toMatchObject({
				"request-id": call.id,
				traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
			});
			expect(cancels).toEqual([]);
		});

		it("never delivers within the call that sends", async () => {
			await serve((_request, response) => response.end());
			const { sink } = send({});
			expect(sink.ends).toBe(0);
			await sink.done;
		});

		it("delivers 100 concurrent streams of 50 items each in exact order", async () => {
			await serve((request, response) => {
				let next = 0;
				const step = () => {
					for (let i = 0; i < 5 && next < 50; i++) {
						response.send({ data: { token_ids: [(request.payload as { n: number }).n, next++] } });
					}
					if (next < 50) setImmediate(step);
					else response.end();
				};
				step();
			});
			const calls = Array.from({ length: 100 }, (_, n) => send({ n }));
			for (const [n, { sink }] of calls.entries()) {
				await sink.done;
				expect(sink.error).toBeUndefined();
				expect(sink.items).toEqual(Array.from({ length: 50 }, (_, i) => ({ data: { token_ids: [n, i] } })));
			}
		});

		it("carries large requests and large items whole", async () => {
			await serve((request, response) => {
				response.send({ data: { text: (request.payload as { text: string }).text.slice(0, 100_000) } });
				response.end();
			});
			const text = "é".repeat(300_000);
			const { sink } = send({ text });
			await sink.done;
			expect(sink.error).toBeUndefined();
			expect(requests[0]?.payload).toEqual({ text });
			expect(sink.items).toEqual([{ data: { text: text.slice(0, 100_000) } }]);
		});

		it("a request that is too large is refused with both numbers, and costs the worker nothing", async () => {
			await serve((_request, response) => response.end());
			const limit = world.largestRequest;
			const { sink } = send({ text: "x".repeat(limit ?? 1024) });
			const small = send({});
			await Promise.all([sink.done, small.sink.done]);
			expect(small.sink.error).toBeUndefined();
			if (limit === undefined) {
				expect(sink.error).toBeUndefined();
				return;
			}
			expect(sink.error?.errorClass).toBe("PayloadTooLarge");
			expect(sink.error?.publicMessage).toContain(String(limit));
			const bytes = Number(/(\d+) bytes/.exec(sink.error?.publicMessage ?? "")?.[1]);
			expect(bytes).toBeGreaterThan(limit);
			expect(requests).toHaveLength(1);
		});

		it("header values of any text arrive, and one that no header can carry fails its request alone", async () => {
			await serve((_request, response) => response.end());
			const ask = (value: string) => {
				const sink = new CollectingSink();
				sinks.push(sink);
				world.client.send(world.instance(PATH), { id: "h", payload: {}, headers: { "x-note": value } }, sink);
				return sink;
			};
			const fine = ask("grüße, 世界");
			await fine.done;
			expect(fine.error).toBeUndefined();
			expect(requests[0]?.headers["x-note"]).toBe("grüße, 世界");
			const odd = ask("two\r\nlines");
			await odd.done;
			const after = ask("next");
			await after.done;
			expect(after.error).toBeUndefined();
			if (odd.error === undefined) expect(requests[1]?.headers["x-note"]).toBe("two\r\nlines");
			else expect(odd.error.errorClass).toBe("InvalidRequest");
		});

		it("kill reaches the worker and ends the call as cancelled", async () => {
			await serve((_request, response) => response.send({ data: { token_ids: [1] } }));
			const { sink, call } = send({});
			await firstItem(sink);
			const { signal } = requests[0] as IngressRequest;
			call.kill();
			call.kill();
			expect(sink.error?.errorClass).toBe("Cancelled");
			await until("the cancellation", () => cancels.length === 1);
			expect(cancels[0]).toBe("kill");
			expect(signal.aborted).toBe(true);
			expect(responses[0]?.closed).toBe(true);
			responses[0]?.send({ data: {} });
			responses[0]?.end();
		});

		it("a kill right after sending does not leave the worker working", async () => {
			await serve();
			const { sink, call } = send({});
			call.kill();
			await sink.done;
			expect(sink.error?.errorClass).toBe("Cancelled");
			const other = send({});
			await until("the second request", () => registration.inflight > 0);
			await until("the first request gone", () => registration.inflight === 1);
			other.call.kill();
		});

		it("a kill between acceptance and the first item reaches the worker", async () => {
			await serve();
			const { sink, call } = send({});
			await accepted();
			call.kill();
			await sink.done;
			expect(sink.error?.errorClass).toBe("Cancelled");
			await until("the cancellation", () => cancels.length === 1);
			expect(["kill", "disconnect"]).toContain(cancels[0]);
		});

		it("kill and stop after the end do nothing", async () => {
			await serve((_request, response) => {
				response.send({ data: { token_ids: [1] } });
				response.end();
			});
			const { sink, call } = send({});
			await sink.done;
			call.kill();
			call.stop();
			call.pause();
			call.resume();
			await until("the end", () => registration.inflight === 0);
			expect(sink.error).toBeUndefined();
			expect(cancels).toEqual([]);
		});

		it("stop reaches the worker, and what it still sends arrives", async () => {
			await serve((request, response) => {
				response.send({ data: { token_ids: [1] } });
				request.onCancel((kind) => {
					if (kind !== "stop") return;
					response.send({ data: { token_ids: [2] } });
					response.end();
				});
			});
			const { sink, call } = send({});
			await firstItem(sink);
			call.stop();
			call.stop();
			await sink.done;
			expect(sink.error).toBeUndefined();
			expect(sink.items).toHaveLength(2);
			expect(cancels).toEqual(["stop"]);
			expect(requests[0]?.signal.aborted).toBe(false);
		});

		it("a stop may be followed by a kill", async () => {
			await serve((_request, response) => response.send({ data: { token_ids: [1] } }));
			const { sink, call } = send({});
			await firstItem(sink);
			call.stop();
			await until("the stop", () => cancels.length === 1);
			call.kill();
			await until("the kill", () => cancels.length === 2);
			expect(cancels).toEqual(["stop", "kill"]);
		});

		it("onCancel after the cancellation calls back at once", async () => {
			await serve((_request, response) => response.send({ data: { token_ids: [1] } }));
			const { sink, call } = send({});
			await firstItem(sink);
			call.kill();
			await until("the kill", () => cancels.length === 1);
			let late: CancelKind | undefined;
			requests[0]?.onCancel((kind) => {
				late = kind;
			});
			expect(late).toBe("kill");
		});

		it("a handler that throws fails its request and no other", async () => {
			await serve((request, response) => {
				if ((request.payload as { bad?: boolean }).bad) throw new Error("boom");
				response.end();
			});
			const bad = send({ bad: true });
			const good = send({});
			await Promise.all([bad.sink.done, good.sink.done]);
			expect(bad.sink.error?.errorClass).toBe("Internal");
			expect(bad.sink.error?.message).toContain("boom");
			expect(good.sink.error).toBeUndefined();
		});

		it("a handler whose promise is rejected fails its request", async () => {
			await serve(async () => {
				await Promise.resolve();
				throw new DynamoError("InvalidArgument", "no such thing");
			});
			const { sink } = send({});
			await sink.done;
			expect(sink.error?.errorClass).toBe("InvalidArgument");
			expect(sink.error?.message).toContain("no such thing");
		});

		it("an error before the first item arrives with its class and message", async () => {
			await serve((_request, response) =>
				response.fail(new DynamoError("InvalidArgument", "dp_rank 9 is out of bounds")),
			);
			const { sink } = send({});
			await sink.done;
			expect(sink.items).toEqual([]);
			expect(sink.error?.errorClass).toBe("InvalidArgument");
			expect(sink.error?.message).toContain("dp_rank 9 is out of bounds");
		});

		it("an error some time after the request was taken arrives too", async () => {
			await serve();
			const { sink } = send({});
			await accepted();
			await new Promise((resolve) => setTimeout(resolve, 30));
			responses[0]?.fail(new DynamoError("WorkerOverloaded", "full"));
			await sink.done;
			expect(sink.error?.errorClass).toBe("WorkerOverloaded");
		});

		it("an error after items comes after them", async () => {
			await serve((_request, response) => {
				response.send({ data: { token_ids: [1] } });
				response.send({ data: { token_ids: [2] } });
				response.fail(new DynamoError("Internal", "engine died"));
				response.send({ data: { token_ids: [3] } });
			});
			const { sink } = send({});
			await sink.done;
			expect(sink.items).toHaveLength(2);
			expect(sink.error?.message).toContain("engine died");
		});

		it("an error item that a handler sends itself is an error", async () => {
			await serve((_request, response) => {
				response.send({ event: "error", comment: ["it broke"] });
				response.end();
			});
			const { sink } = send({});
			await sink.done;
			expect(sink.items).toEqual([]);
			expect(sink.error?.message).toContain("it broke");
		});

		it("a worker that vanishes mid-stream is a disconnect", async () => {
			await serve((_request, response) => response.send({ data: { token_ids: [1] } }));
			const { sink } = send({});
			await firstItem(sink);
			await world.server.close();
			await sink.done;
			expect(sink.items).toHaveLength(1);
			expect(sink.error?.errorClass).toBe("Disconnected");
			expect(cancels).toEqual(["disconnect"]);
		});

		it("a worker that is not there cannot be connected to, or refuses", async () => {
			await serve();
			await world.server.close();
			const { sink } = send({});
			await sink.done;
			expect(["CannotConnect", "WorkerUnavailable"]).toContain(sink.error?.errorClass);
		});

		it("an endpoint that nobody serves refuses", async () => {
			await serve();
			const sink = new CollectingSink();
			sinks.push(sink);
			world.client.send(world.instance("ab12/dynamo/backend/other"), { id: "x", payload: {} }, sink);
			await sink.done;
			expect(["CannotConnect", "WorkerUnavailable"]).toContain(sink.error?.errorClass);
		});

		it("a worker that takes the request and says nothing fails at the first deadline, and is told", async () => {
			await serve();
			const { sink } = send({}, { firstResponseTimeoutMs: 100 });
			await sink.done;
			expect(sink.error?.errorClass).toBe("ResponseTimeout");
			await until("the cancellation", () => cancels.length === 1);
		});

		it("a worker that falls silent between items fails at the idle deadline", async () => {
			await serve((_request, response) => response.send({ data: { token_ids: [1] } }));
			const { sink } = send({}, { idleTimeoutMs: 100 });
			await sink.done;
			expect(sink.items).toHaveLength(1);
			expect(sink.error?.errorClass).toBe("ResponseTimeout");
			await until("the cancellation", () => cancels.length === 1);
		});

		it("deadlines rest while the receiver has paused", async () => {
			await serve((_request, response) => response.send({ data: { token_ids: [1] } }));
			const { sink, call } = send({}, { idleTimeoutMs: 100 });
			await firstItem(sink);
			call.pause();
			await new Promise((resolve) => setTimeout(resolve, 300));
			expect(sink.ends).toBe(0);
			call.resume();
			responses[0]?.end();
			await sink.done;
			expect(sink.error).toBeUndefined();
		});

		it("nothing is delivered while paused, nothing is lost, and the order holds", async () => {
			await serve();
			const { sink, call } = send({});
			await accepted();
			const pauseAt = [1, 7, 40];
			const paused: number[] = [];
			sink.onItem = (item) => {
				sink.items.push(item);
				if (!pauseAt.includes(sink.items.length)) return;
				call.pause();
				const before = sink.items.length;
				setTimeout(() => {
					paused.push(sink.items.length - before);
					call.resume();
				}, 20);
			};
			for (let i = 0; i < 60; i++) responses[0]?.send({ data: { token_ids: [i] } });
			responses[0]?.end();
			await sink.done;
			expect(sink.error).toBeUndefined();
			expect(sink.items.map((item) => (item.data as { token_ids: number[] }).token_ids[0])).toEqual(
				Array.from({ length: 60 }, (_, i) => i),
			);
			expect(paused).toEqual([0, 0, 0]);
		});

		it("a receiver that does not read is cut off when its limit is reached", async () => {
			await serve();
			const { sink, call } = send({});
			await accepted();
			const response = responses[0] as ResponseWriter;
			response.send({ data: { token_ids: [1] } });
			await firstItem(sink);
			call.pause();
			let most = 0;
			const text = "x".repeat(4096);
			await new Promise<void>((resolve) => {
				const step = () => {
					for (let i = 0; i < 16 && !response.closed; i++) {
						response.send({ data: { text } });
						most = Math.max(most, response.bufferedBytes);
					}
					if (response.closed) resolve();
					else setImmediate(step);
				};
				step();
			});
			expect(most).toBeLessThanOrEqual(world.bufferLimit + 16 * 5000);
			expect(cancels).toEqual(["disconnect"]);
			call.resume();
			await sink.done;
			expect(sink.error?.errorClass).toBe("Disconnected");
		});

		it("draining refuses new requests and waits for those under way", async () => {
			await serve();
			const old = send({});
			await accepted();
			registration.refuse();
			const fresh = send({});
			await fresh.sink.done;
			expect(fresh.sink.error?.errorClass).toBe("WorkerUnavailable");
			expect(await registration.drained(20)).toBe(false);
			const drained = registration.drained(10_000);
			responses[0]?.send({ data: { token_ids: [1] } });
			responses[0]?.end();
			expect(await drained).toBe(true);
			await old.sink.done;
			expect(old.sink.error).toBeUndefined();
			expect(old.sink.items).toHaveLength(1);
		});

		it("an endpoint that was closed can be served again", async () => {
			await serve((_request, response) => response.end());
			registration.close();
			const refused = send({});
			await refused.sink.done;
			expect(["CannotConnect", "WorkerUnavailable"]).toContain(refused.sink.error?.errorClass);
			await serve((_request, response) => response.end());
			const { sink } = send({});
			await sink.done;
			expect(sink.error).toBeUndefined();
		});

		it("closing an endpoint ends what is under way", async () => {
			await serve((_request, response) => response.send({ data: { token_ids: [1] } }));
			const { sink } = send({});
			await firstItem(sink);
			registration.close();
			await sink.done;
			expect(sink.error?.errorClass).toBe("Disconnected");
			expect(cancels).toEqual(["disconnect"]);
		});

		it("closing the client ends what is under way, and the worker hears of it", async () => {
			await serve((_request, response) => response.send({ data: { token_ids: [1] } }));
			const { sink } = send({});
			await firstItem(sink);
			await world.client.close();
			expect(sink.error?.errorClass).toBe("Cancelled");
			await until("the cancellation", () => cancels.length === 1);
		});

		it("a receiver that throws loses its own request only", async () => {
			await serve((_request, response) => {
				response.send({ data: { token_ids: [1] } });
				response.send({ data: { token_ids: [2] } });
				response.end();
			});
			const bad = send({});
			bad.sink.onItem = () => {
				throw new Error("receiver broke");
			};
			const good = send({});
			await Promise.all([bad.sink.done, good.sink.done]);
			expect(bad.sink.error?.errorClass).toBe("Internal");
			expect(good.sink.items).toHaveLength(2);
		});

		it("an instance that left discovery fails a request that it has not taken", async () => {
			await serve();
			const sink = new CollectingSink();
			sinks.push(sink);
			const call = world.client.send(world.instance(PATH), { id: "gone", payload: {} }, sink);
			call.instanceGone();
			await sink.done;
			expect(sink.error?.errorClass).toBe("Disconnected");
			await until("nothing under way", () => registration.inflight === 0);
		});

		it("an instance that left discovery finishes the streams that it has", async () => {
			await serve((_request, response) => response.send({ data: { token_ids: [1] } }));
			const sink = new CollectingSink();
			sinks.push(sink);
			const call = world.client.send(world.instance(PATH), { id: "leaving", payload: {} }, sink);
			await firstItem(sink);
			call.instanceGone();
			responses[0]?.send({ data: { token_ids: [2] } });
			responses[0]?.end();
			await sink.done;
			expect(sink.error).toBeUndefined();
			expect(sink.items).toHaveLength(2);
		});
	});
}
