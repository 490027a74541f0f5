// SPDX-License-Identifier: Apache-2.0
import type { RequestPlaneCodec } from "@dynamo-ts/protocols/internal";
import type { Span } from "../observability/tracing/span.js";
import type { CancelKind, IngressRequest } from "./request-plane.js";

/** A request with its cancellation state; the same for every transport. */
export class CancellableRequest implements IngressRequest {
	readonly id: string;
	readonly headers: Readonly<Record<string, string>>;
	readonly payload: unknown;
	readonly codec: RequestPlaneCodec;
	readonly receivedAt: number;
	/** Set when the request is accepted. */
	span: Span | undefined;
	#callbacks: ((kind: CancelKind) => void)[] = [];
	#cancelled: CancelKind | undefined;
	#finished = false;
	#abort: AbortController | undefined;
	readonly #onCallbackError: (error: unknown) => void;

	constructor(
		request: Pick<IngressRequest, "id" | "headers" | "payload" | "codec" | "receivedAt">,
		onCallbackError: (error: unknown) => void,
	) {
		this.id = request.id;
		this.headers = request.headers;
		this.payload = request.payload;
		this.codec = request.codec;
		this.receivedAt = request.receivedAt;
		this.#onCallbackError = onCallbackError;
	}

	get signal(): AbortSignal {
		if (this.#abort === undefined) {
			this.#abort = new AbortController();
			if (this.#isFinal()) this.#abort.abort();
		}
		return this.#abort.signal;
	}

	onCancel(callback: (kind: CancelKind) => void): void {
		if (this.#cancelled !== undefined) this.#call(callback, this.#cancelled);
		if (!this.#finished && !this.#isFinal()) this.#callbacks.push(callback);
	}

	/** Why it was cancelled so far; undefined if it was not. */
	get cancelled(): CancelKind | undefined {
		return this.#cancelled;
	}

	/** Tells the handler; a stop may be followed by a kill or disconnect, nothing follows those. */
	cancel(kind: CancelKind): void {
		if (this.#finished || this.#isFinal() || this.#cancelled === kind) return;
		this.#cancelled = kind;
		const callbacks = this.#callbacks;
		if (kind !== "stop") {
			this.#callbacks = [];
			this.#abort?.abort();
		}
		for (const callback of callbacks) this.#call(callback, kind);
	}

	/** The response ended: nothing can be cancelled any more. */
	finish(): void {
		this.#finished = true;
		this.#callbacks = [];
	}

	#isFinal(): boolean {
		return this.#cancelled === "kill" || this.#cancelled === "disconnect";
	}

	#call(callback: (kind: CancelKind) => void, kind: CancelKind): void {
		try {
			callback(kind);
		} catch (error) {
			this.#onCallbackError(error);
		}
	}
}
