// SPDX-License-Identifier: Apache-2.0
import { request as httpRequest, type IncomingHttpHeaders, type IncomingMessage } from "node:http";
import { type StreamExpectations, type StreamSummary, StreamValidator } from "./stream-validator.js";

/** A whole HTTP answer. */
export interface HttpAnswer {
	readonly status: number;
	readonly statusMessage: string;
	readonly headers: IncomingHttpHeaders;
	readonly body: string;
	/** The body as JSON; undefined when it is not. */
	// biome-ignore lint/suspicious/noExplicitAny: tests look into bodies freely
	readonly json: any;
}

export interface HttpOptions {
	readonly method?: string;
	readonly headers?: Record<string, string>;
	/** An object is sent as JSON; text and bytes as they are. */
	readonly body?: unknown;
	/** Aborting it closes the connection. */
	readonly signal?: AbortSignal;
}

function open(url: string, options: HttpOptions): Promise<IncomingMessage> {
	return new Promise((resolve, reject) => {
		const { body } = options;
		const raw = body === undefined || typeof body === "string" || body instanceof Uint8Array;
		const payload = raw ? (body as string | Uint8Array | undefined) : JSON.stringify(body);
		const headers: Record<string, string> = {
			...(raw ? {} : { "content-type": "application/json" }),
			...options.headers,
		};
		if (payload !== undefined) headers["content-length"] = String(Buffer.byteLength(payload));
		const method = options.method ?? (payload === undefined ? "GET" : "POST");
		const request = httpRequest(url, { method, headers, agent: false, signal: options.signal }, resolve);
		request.on("error", reject);
		request.end(payload);
	});
}

/** Sends a request and reads the whole answer. */
export async function http(url: string, options: HttpOptions = {}): Promise<HttpAnswer> {
	const response = await open(url, options);
	const chunks: Buffer[] = [];
	for await (const chunk of response) chunks.push(chunk as Buffer);
	const body = Buffer.concat(chunks).toString("utf8");
	let json: unknown;
	try {
		json = JSON.parse(body);
	} catch {
		json = undefined;
	}
	return {
		status: response.statusCode ?? 0,
		statusMessage: response.statusMessage ?? "",
		headers: response.headers,
		body,
		json,
	};
}

/** An event stream that is being read; every byte passes through a {@link StreamValidator}. */
export interface SseStream {
	readonly status: number;
	readonly headers: IncomingHttpHeaders;
	readonly validator: StreamValidator;
	/** Everything received so far. */
	text(): string;
	/** Resolves when `count` data events have arrived; rejects when the stream ends before that. */
	events(count: number): Promise<string[]>;
	/**
	 * Resolves with the summary when the stream has ended.
	 * @throws StreamViolation for a stream that breaks a rule, Error for one that is not an event stream or was cut.
	 */
	finished(): Promise<StreamSummary>;
	/** Stops reading, so that the server feels back-pressure. */
	pause(): void;
	resume(): void;
	/** Leaves: closes the connection. */
	abort(): void;
}

/**
 * Posts `body` and reads the answer as an event stream.
 * @param expect what the stream must look like; see {@link StreamExpectations}.
 */
export async function openStream(
	url: string,
	body: unknown,
	expect: StreamExpectations,
	headers: Record<string, string> = {},
): Promise<SseStream> {
	const controller = new AbortController();
	const response = await open(url, { method: "POST", body, headers, signal: controller.signal });
	const data: string[] = [];
	const waiting: { count: number; resolve: (events: string[]) => void; reject: (error: Error) => void }[] = [];
	let aborted = false;
	const settle = (over?: Error): void => {
		for (const waiter of waiting.splice(0)) {
			if (data.length >= waiter.count) waiter.resolve(data.slice(0, waiter.count));
			else if (over !== undefined) waiter.reject(over);
			else waiting.push(waiter);
		}
	};
	const validator = new StreamValidator(expect, (_event, text) => data.push(text));
	const received: Buffer[] = [];
	let failure: Error | undefined;
	let over = false;
	response.on("data", (chunk: Buffer) => {
		received.push(chunk);
		validator.push(chunk);
		settle();
	});
	const finished = new Promise<StreamSummary>((resolve, reject) => {
		response.on("error", (error) => {
			failure ??= error;
		});
		response.on("close", () => {
			over = true;
			const type = response.headers["content-type"] ?? "";
			try {
				if (aborted) resolve(validator.summary());
				else if (failure !== undefined || !response.complete) throw failure ?? new Error("the connection was cut");
				else if (!type.startsWith("text/event-stream")) {
					throw new Error(`${response.statusCode} ${type}: ${Buffer.concat(received).toString("utf8")}`);
				} else resolve(validator.end());
			} catch (error) {
				reject(error);
			}
			settle(new Error(`the stream ended after ${data.length} events`));
		});
	});
	finished.catch(() => {});
	return {
		status: response.statusCode ?? 0,
		headers: response.headers,
		validator,
		text: () => Buffer.concat(received).toString("utf8"),
		events: (count) =>
			new Promise((resolve, reject) => {
				waiting.push({ count, resolve, reject });
				settle(over ? new Error(`the stream ended after ${data.length} events`) : undefined);
			}),
		finished: () => finished,
		pause: () => response.pause(),
		resume: () => response.resume(),
		abort: () => {
			aborted = true;
			controller.abort();
			response.destroy();
		},
	};
}
