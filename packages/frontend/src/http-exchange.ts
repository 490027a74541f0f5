// SPDX-License-Identifier: Apache-2.0
// One HTTP request from its head to the end of its answer: its span, and the line that says that it was answered.
import { randomUUID } from "node:crypto";
import { type IncomingMessage, type ServerResponse, STATUS_CODES } from "node:http";
import type { DistributedRuntime, Logger, Span } from "@dynamo-ts/runtime";
import { readAt } from "@dynamo-ts/runtime/internal";

/** With or without hyphens, in braces, as a URN: what Rust's parser takes. */
const UUID =
	/^(urn:uuid:)?[0-9a-f]{8}(-?)[0-9a-f]{4}\2[0-9a-f]{4}\2[0-9a-f]{4}\2[0-9a-f]{12}$|^\{[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\}$/i;

/** The logs that lines about HTTP requests go to, under the names that Dynamo's filters know. */
export interface ExchangeLogs {
	readonly service: Logger;
	readonly failure: Logger;
	readonly openai: Logger;
	/** Whether requests to system routes get spans, too. */
	readonly systemSpans: boolean;
}

export function exchangeLogs(runtime: DistributedRuntime): ExchangeLogs {
	return {
		service: runtime.log.child("dynamo_llm::http::service::service_v2"),
		failure: runtime.log.child("tower_http::trace::on_failure"),
		openai: runtime.log.child("dynamo_llm::http::service::openai"),
		systemSpans: runtime.log.child("system_span").isEnabled("debug"),
	};
}

/**
 * Begins when the head of a request was read. The span `http-request` ends when the response is closed and everything
 * that {@link hold}s it is done.
 */
export class HttpExchange {
	/** Absent for requests to system routes, unless they are logged at debug. */
	readonly span: Span | undefined;
	/** A fresh UUID, unless the client gave one in the deprecated header. */
	readonly requestId: string;
	/** What the client calls its request, whatever is in it. */
	readonly xRequestId: string | undefined;
	/** `performance.now()` of the beginning, requests of others that were read before it in the same turn included. */
	readonly receivedAt = readAt();
	private readonly logs: ExchangeLogs;
	/** Parts that are not done yet; the response itself is one. */
	private open = 1;

	/** @param system a route for machines: health, metrics, models. */
	constructor(
		runtime: DistributedRuntime,
		logs: ExchangeLogs,
		request: IncomingMessage,
		response: ServerResponse,
		system: boolean,
	) {
		this.logs = logs;
		this.xRequestId = firstHeader(request, "x-request-id");
		const given = system ? undefined : firstHeader(request, "x-dynamo-request-id");
		this.requestId = given !== undefined && UUID.test(given) ? given : randomUUID();
		if (!system || logs.systemSpans) {
			const { method, url, httpVersion } = request;
			const traceparent = firstHeader(request, "traceparent");
			this.span = runtime.tracer.enter(
				"http-request",
				{ traceparent, xRequestId: this.xRequestId },
				{
					target: system ? "system_span" : "request_span",
					fields: { method, uri: url, version: `HTTP/${httpVersion}` },
				},
				{ request_id: this.requestId },
			);
		}
		if (given !== undefined) {
			logs.openai.warn("x-dynamo-request-id header is deprecated; use x-request-id", undefined, this.span);
		}
		this.watchHead(response);
		response.once("close", () => this.release());
	}

	/** Keeps the span open; followed by one {@link release}. */
	hold(): void {
		this.open++;
	}

	release(): void {
		this.open--;
		if (this.open === 0) this.span?.end();
	}

	/** Node tells nobody when it sends a response's head, and everything that sends one comes through this method. */
	private watchHead(response: ServerResponse): void {
		const writeHead = response.writeHead;
		response.writeHead = (...head: unknown[]) => {
			response.writeHead = writeHead;
			const result = (writeHead as (...head: unknown[]) => ServerResponse).apply(response, head);
			this.onHead(response.statusCode);
			return result;
		};
	}

	private onHead(status: number): void {
		const { service, failure } = this.logs;
		const latency = Math.floor(performance.now() - this.receivedAt);
		const fields = { status: String(status), latency_ms: String(latency) };
		if (status < 400) {
			service.info("http response sent", fields, this.span);
			return;
		}
		if (status >= 500) {
			const classification = `Status code: ${status} ${STATUS_CODES[status] ?? "<unknown status code>"}`;
			failure.error("response failed", { classification, latency: `${latency} ms` }, this.span);
		}
		service.error("http response sent", fields, this.span);
		this.span?.set("request.outcome", "error");
		this.span?.fail();
	}
}

/** The first one, where node joins several. */
function firstHeader(request: IncomingMessage, name: string): string | undefined {
	const value = request.headers[name];
	if (Array.isArray(value)) return value[0];
	return value?.includes(", ") ? request.headersDistinct[name]?.[0] : value;
}
