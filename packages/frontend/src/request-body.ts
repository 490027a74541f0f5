// SPDX-License-Identifier: Apache-2.0
import type { IncomingMessage, ServerResponse } from "node:http";
import { HttpError } from "@dynamo-ts/protocols/internal";

const MB = 1024 * 1024;

/** Thrown by {@link readBody} when the client left before it had sent all. */
export class ClientGoneError extends Error {
	override readonly name = "ClientGoneError";
}

/** The refusal of a body that is not JSON. */
export function unsupportedMediaType(): HttpError {
	return new HttpError(415, "Expected request with Content-Type application/json");
}

/**
 * Checks the content type and reads the whole body; a client that waits for `100 Continue` gets it in between.
 * @param limitBytes larger bodies are refused as soon as that shows; what still comes is thrown away.
 * @throws HttpError 415, 413; ClientGoneError.
 */
export function readBody(request: IncomingMessage, response: ServerResponse, limitBytes: number): Promise<Buffer> {
	const [type] = (request.headers["content-type"] ?? "").split(";", 1) as [string];
	if (!/^application\/([^\s/,]+\+)?json$/.test(type.trim().toLowerCase())) {
		request.resume();
		return Promise.reject(unsupportedMediaType());
	}
	const tooLarge = (): HttpError =>
		new HttpError(
			413,
			`Request body exceeds the limit of ${Math.round(limitBytes / MB)} MB set by DYN_HTTP_BODY_LIMIT_MB`,
		);
	if (Number(request.headers["content-length"] ?? 0) > limitBytes) {
		request.resume();
		return Promise.reject(tooLarge());
	}
	if (request.headers.expect?.toLowerCase() === "100-continue") {
		response.shouldKeepAlive = true;
		response.writeContinue();
	}
	return new Promise((resolve, reject) => {
		const chunks: Buffer[] = [];
		let size = 0;
		let refused = false;
		request.on("data", (chunk: Buffer) => {
			if (refused) return;
			size += chunk.length;
			if (size > limitBytes) {
				refused = true;
				chunks.length = 0;
				reject(tooLarge());
				return;
			}
			chunks.push(chunk);
		});
		request.on("end", () => resolve(chunks.length === 1 ? (chunks[0] as Buffer) : Buffer.concat(chunks)));
		const onGone = (): void => {
			// Also called after a request that was read to its end.
			if (!request.complete) reject(new ClientGoneError("the client left while sending its request"));
		};
		request.on("error", onGone);
		request.on("close", onGone);
	});
}
