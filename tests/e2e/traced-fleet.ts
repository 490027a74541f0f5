// SPDX-License-Identifier: Apache-2.0
// Processes of ours that export their spans and log lines, and chat requests with traces of their own.
import {
	type Child,
	type ClientTrace,
	calledBack,
	Fleet,
	type HttpAnswer,
	type HttpChild,
	http,
	type OtlpSpan,
	openStream,
	type Plane,
	type SseStream,
	TraceWatch,
	traceLines,
	until,
	type WorkerChild,
} from "@dynamo-ts/testing/internal";
import { expect } from "vitest";

/** Spans of a name, by the order of their begin. */
export const find = (spans: readonly OtlpSpan[], name: string): OtlpSpan[] =>
	spans.filter((span) => span.name === name);

/** Spans of an engine that has begun to answer. */
const ENGINE = ["queue", "prefill", "decode"];

/** The lines of a span tree for a worker's part in it. */
export const handled = (indent: string, service: unknown, parts: readonly string[] = ENGINE): string[] => [
	`${indent}handle_payload SERVER ${service}`,
	...parts.map((part) => `${indent}  ${part} INTERNAL ${service}`),
];

/** Where the spans of workers and routers come from, in their order. */
export const servicesOf = (spans: readonly OtlpSpan[]): string[] =>
	find(spans, "handle_payload").map(({ resource }) => resource["service.name"] as string);

/** Mockers whose prompts take many steps, so that there is time to leave or to be killed. */
export const SLOW_PREFILL = [
	...["--block-size", "16", "--max-num-batched-tokens", "16"],
	...["--speedup-ratio", "0.2", "--decode-speedup-ratio", "5"],
];

export class TracedFleet {
	readonly workers = new Map<string, WorkerChild>();
	frontend!: HttpChild;

	private constructor(
		readonly watch: TraceWatch,
		readonly fleet: Fleet,
	) {}

	static async over(plane: Plane, protocol?: "grpc" | "http/protobuf"): Promise<TracedFleet> {
		return new TracedFleet(await TraceWatch.start(protocol), await Fleet.over(plane));
	}

	async stop(): Promise<void> {
		await this.fleet.stop();
		await this.watch.close();
	}

	/** Starts a simulated worker; its spans are the service `name`'s. */
	async addMocker(name: string, modelPath: string, model: string, args: readonly string[]): Promise<void> {
		this.workers.set(name, await this.fleet.mocker(modelPath, model, args, this.watch.env(name)));
	}

	/** Starts the frontend; its spans are the service `frontend`'s. */
	async startFrontend(model: string, args: readonly string[]): Promise<void> {
		this.frontend = await this.fleet.frontend(model, args, this.watch.env("frontend"));
	}

	/** Resolves once the frontend knows of exactly so many workers. */
	untilWorkers(count: number): Promise<void> {
		return until(`${count} workers are seen`, async () => {
			const { instances } = (await http(`${this.frontend.url}/health`)).json as { instances: { endpoint: string }[] };
			return instances.filter(({ endpoint }) => endpoint === "generate").length === count;
		});
	}

	post(body: unknown, { headers }: ClientTrace, signal?: AbortSignal): Promise<HttpAnswer> {
		return http(`${this.frontend.url}/v1/chat/completions`, { body, headers, ...(signal ? { signal } : {}) });
	}

	stream(body: { readonly model: string }, { headers }: ClientTrace): Promise<SseStream> {
		const expected = { kind: "chat", model: body.model, allowReplacementCharacter: true } as const;
		return openStream(`${this.frontend.url}/v1/chat/completions`, { ...body, stream: true }, expected, headers);
	}

	/** The worker that has written about a trace, and its name, once there is one; of those whose names begin so. */
	async workerOf(trace: ClientTrace, prefix = ""): Promise<WorkerChild & { readonly name: string }> {
		let found: [string, WorkerChild] | undefined;
		await until(`a worker ${prefix} has the request`, () => {
			const known = [...this.workers].filter(([name]) => name.startsWith(prefix));
			found = known.find(([, { child }]) => traceLines(child, trace).length > 0);
			return found !== undefined;
		});
		const [name, worker] = found as unknown as [string, WorkerChild];
		return { ...worker, name };
	}

	/** Posts a request and kills the worker that has its prompt, as soon as a loss of it shows. @returns who that was. */
	async postAndKill(
		body: unknown,
		trace: ClientTrace,
		prefix = "",
	): Promise<{ readonly answer: HttpAnswer; readonly killed: string }> {
		const before = new Map<string, number>();
		for (const [name, worker] of this.workers) before.set(name, await calledBack(worker));
		const answer = this.post(body, trace);
		const victim = await this.workerOf(trace, prefix);
		const earlier = before.get(victim.name) as number;
		await until("the worker has called back", async () => (await calledBack(victim)) > earlier);
		victim.child.kill("SIGKILL");
		return { answer: await answer, killed: victim.name };
	}

	/** Each of the processes says the same ids on every line about the request. @returns how many lines each has. */
	checkLines(trace: ClientTrace, spans: readonly OtlpSpan[], children: readonly Child[]): number[] {
		return children.map((child) => {
			const lines = traceLines(child, trace);
			for (const line of lines) {
				expect(line).toMatchObject({
					trace_id: trace.traceId,
					x_request_id: trace.headers["x-request-id"],
					request_id: spans[0]?.attributes.request_id,
				});
			}
			return lines.length;
		});
	}
}
