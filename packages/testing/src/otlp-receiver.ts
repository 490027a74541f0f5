// SPDX-License-Identifier: Apache-2.0
// An OTLP receiver over gRPC or HTTP, which keeps what it gets, and can refuse or stay silent.
import { once } from "node:events";
import { createServer as createHttp, type IncomingMessage, type ServerResponse } from "node:http";
import { createServer as createHttp2, type IncomingHttpHeaders, type ServerHttp2Stream } from "node:http2";
import type { AddressInfo, Socket } from "node:net";
import { gunzipSync } from "node:zlib";
import {
	decodeLogs,
	decodeMetrics,
	decodeTraces,
	type OtlpLog,
	type OtlpMetric,
	type OtlpSpan,
} from "./otlp-decode.js";

/** What the receiver does with a request; "discard": says that it took it, and keeps nothing. */
export type OtlpBehaviour = "take" | "discard" | "refuse" | "silent";

const accepts = (behaviour: OtlpBehaviour): boolean => behaviour === "take" || behaviour === "discard";

export interface OtlpReceiver {
	/** `http://127.0.0.1:port`. */
	readonly url: string;
	readonly spans: OtlpSpan[];
	readonly logs: OtlpLog[];
	readonly metrics: OtlpMetric[];
	/** Path and user agent of each request. */
	readonly requests: { readonly path: string; readonly userAgent: string }[];
	behaviour: OtlpBehaviour;
	/** Spans of one trace, by the order of their begin. */
	trace(traceId: string): OtlpSpan[];
	close(): Promise<void>;
}

/** Starts a receiver on a free port of the loopback interface. */
export async function startOtlpReceiver(protocol: "grpc" | "http/protobuf" = "grpc"): Promise<OtlpReceiver> {
	const receiver = {
		url: "",
		spans: [] as OtlpSpan[],
		logs: [] as OtlpLog[],
		metrics: [] as OtlpMetric[],
		requests: [] as { path: string; userAgent: string }[],
		behaviour: "take" as OtlpBehaviour,
	};
	const take = (path: string, userAgent: string, message: Buffer): void => {
		if (receiver.behaviour === "discard") return;
		receiver.requests.push({ path, userAgent });
		if (receiver.behaviour !== "take") return;
		if (/trace/i.test(path)) receiver.spans.push(...decodeTraces(message));
		else if (/logs/i.test(path)) receiver.logs.push(...decodeLogs(message));
		else receiver.metrics.push(...decodeMetrics(message));
	};
	const server = protocol === "grpc" ? createHttp2() : createHttp();
	if (protocol === "grpc") {
		server.on("stream", (stream: ServerHttp2Stream, headers: IncomingHttpHeaders) => {
			// A client that gives up resets its stream.
			stream.on("error", () => {});
			void answerGrpc(stream, headers, receiver, take);
		});
	} else {
		server.on("request", (request: IncomingMessage, response: ServerResponse) => {
			void answerHttp(request, response, receiver, take);
		});
	}
	const sockets = new Set<Socket>();
	server.on("connection", (socket: Socket) => {
		sockets.add(socket);
		socket.once("close", () => sockets.delete(socket));
	});
	server.listen(0, "127.0.0.1");
	await once(server, "listening");
	receiver.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
	return Object.assign(receiver, {
		trace: (traceId: string) =>
			receiver.spans.filter((span) => span.traceId === traceId).sort((a, b) => (a.start < b.start ? -1 : 1)),
		close: async () => {
			const closed = once(server, "close");
			server.close();
			for (const socket of sockets) socket.destroy();
			await closed;
		},
	});
}

type Take = (path: string, userAgent: string, message: Buffer) => void;

async function bodyOf(request: IncomingMessage | ServerHttp2Stream): Promise<Buffer> {
	const chunks: Buffer[] = [];
	for await (const chunk of request) chunks.push(chunk as Buffer);
	return Buffer.concat(chunks);
}

/** One message: a flag for compression, four bytes of length, the message; the answer's trailers have the status. */
async function answerGrpc(
	stream: ServerHttp2Stream,
	headers: IncomingHttpHeaders,
	{ behaviour }: { behaviour: OtlpBehaviour },
	take: Take,
): Promise<void> {
	const body = await bodyOf(stream);
	const message = body.subarray(5, 5 + body.readUInt32BE(1));
	take(String(headers[":path"]), String(headers["user-agent"]), body[0] === 1 ? gunzipSync(message) : message);
	if (behaviour === "silent" || stream.destroyed) return;
	stream.respond({ ":status": 200, "content-type": "application/grpc+proto" }, { waitForTrailers: true });
	stream.on("wantTrailers", () => stream.sendTrailers({ "grpc-status": accepts(behaviour) ? "0" : "14" }));
	if (accepts(behaviour)) stream.write(Buffer.alloc(5));
	stream.end();
}

async function answerHttp(
	request: IncomingMessage,
	response: ServerResponse,
	{ behaviour }: { behaviour: OtlpBehaviour },
	take: Take,
): Promise<void> {
	const body = await bodyOf(request);
	const plain = request.headers["content-encoding"] === "gzip" ? gunzipSync(body) : body;
	take(request.url ?? "", String(request.headers["user-agent"]), plain);
	if (behaviour === "silent") return;
	response.writeHead(accepts(behaviour) ? 200 : 400, { "content-type": "application/x-protobuf" }).end();
}
