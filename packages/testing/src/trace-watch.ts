// SPDX-License-Identifier: Apache-2.0
// Requests with traces of their own, and what processes export and log about them.
import { ENV } from "@dynamo-ts/protocols/internal";
import { type Child, until } from "./child-process.js";
import type { OtlpSpan } from "./otlp-decode.js";
import { type OtlpReceiver, startOtlpReceiver } from "./otlp-receiver.js";

/** The client's span, which every trace of a {@link TraceWatch} begins under. */
const CALLER = "bb00000000000001";

/** A trace that a client begins. */
export interface ClientTrace {
	readonly traceId: string;
	/** What the client sends with its request. */
	readonly headers: Readonly<Record<"traceparent" | "x-request-id", string>>;
}

/** A receiver in place of Tempo and Loki, and the traces of the requests that a test sends. */
export class TraceWatch {
	readonly receiver: OtlpReceiver;
	readonly #protocol: "grpc" | "http/protobuf";
	#traces = 0;

	private constructor(receiver: OtlpReceiver, protocol: "grpc" | "http/protobuf") {
		this.receiver = receiver;
		this.#protocol = protocol;
	}

	static async start(protocol: "grpc" | "http/protobuf" = "grpc"): Promise<TraceWatch> {
		return new TraceWatch(await startOtlpReceiver(protocol), protocol);
	}

	/** Variables of a process, ours or a real one, that exports to the receiver; its log is JSONL at level info. */
	env(service: string): Record<string, string> {
		const { url } = this.receiver;
		const http = this.#protocol === "http/protobuf";
		return {
			[ENV.OTEL_EXPORT_ENABLED]: "true",
			[ENV.OTEL_EXPORTER_OTLP_TRACES_ENDPOINT]: http ? `${url}/v1/traces` : url,
			[ENV.OTEL_EXPORTER_OTLP_LOGS_ENDPOINT]: http ? `${url}/v1/logs` : url,
			...(http ? { [ENV.OTEL_EXPORTER_OTLP_PROTOCOL]: this.#protocol } : {}),
			[ENV.OTEL_SERVICE_NAME]: service,
			OTEL_BSP_SCHEDULE_DELAY: "100",
			[ENV.DYN_LOGGING_JSONL]: "1",
			[ENV.DYN_LOG]: "info",
		};
	}

	/** A trace that was not there yet; with an x-request-id that has to be escaped in JSON. */
	trace(flags: "00" | "01" = "01"): ClientTrace {
		const traceId = (0xaa00n + BigInt(++this.#traces)).toString(16).padStart(32, "c");
		const headers = { traceparent: `00-${traceId}-${CALLER}-${flags}`, "x-request-id": `odd "${traceId}" id` };
		return { traceId, headers };
	}

	/**
	 * The spans of a trace, by the order of their begin, once there are so many.
	 * @param killed a service that is left out: what it could still send depends on the moment of its end.
	 * @throws Error when there are fewer, or more.
	 */
	async spans({ traceId }: ClientTrace, count: number, killed?: string): Promise<OtlpSpan[]> {
		const spans = (): OtlpSpan[] =>
			this.receiver.trace(traceId).filter(({ resource }) => resource["service.name"] !== killed);
		const names = (): string =>
			spans()
				.map(({ name }) => name)
				.join(", ");
		await until(`${count} spans of ${traceId}`, () => spans().length >= count, { timeoutMs: 15_000 }).catch(
			(error: Error) => {
				throw new Error(`${error.message}; there are: ${names()}`);
			},
		);
		const found = spans();
		if (found.length > count) throw new Error(`more than ${count} spans: ${names()}`);
		return found;
	}

	async close(): Promise<void> {
		await this.receiver.close();
	}
}

/**
 * Name, kind and service of each span, indented under its parent.
 * @throws Error when spans do not hang together under the client's.
 */
export function spanTree(spans: readonly OtlpSpan[]): string[] {
	const lines: string[] = [];
	const show = (parent: string, depth: number): void => {
		for (const span of spans.filter(({ parentSpanId }) => parentSpanId === parent)) {
			lines.push(`${"  ".repeat(depth)}${span.name} ${span.kind} ${span.resource["service.name"]}`);
			show(span.spanId, depth + 1);
		}
	};
	show(CALLER, 0);
	if (lines.length !== spans.length) {
		const shown = spans.map(({ name, spanId, parentSpanId }) => `${name} ${spanId} under ${parentSpanId}`);
		throw new Error(`not all hang together: ${shown.join(", ")}`);
	}
	return lines;
}

/** The JSON lines of a process about a trace; one that is half read yet is left out. */
export function traceLines(child: Child, { traceId }: ClientTrace): Record<string, string>[] {
	return child.stderr
		.split("\n")
		.filter((line) => line.startsWith("{") && line.endsWith("}") && line.includes(traceId))
		.map((line) => JSON.parse(line) as Record<string, string>);
}
