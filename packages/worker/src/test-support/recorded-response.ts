// SPDX-License-Identifier: Apache-2.0
import type { Annotated, DynamoError, LLMEngineOutput } from "@dynamo-ts/protocols/internal";
import type { CancelKind, IngressRequest, ResponseWriter } from "@dynamo-ts/runtime";

/** Keeps what a handler sends. */
export class RecordedResponse implements ResponseWriter {
	readonly items: LLMEngineOutput[] = [];
	error: DynamoError | undefined;
	ended = 0;
	closed = false;
	readonly bufferedBytes = 0;

	send(item: Annotated<unknown>): void {
		if (!this.closed) this.items.push(item.data as LLMEngineOutput);
	}

	fail(error: DynamoError): void {
		if (this.closed) return;
		this.closed = true;
		this.error = error;
	}

	end(): void {
		if (this.closed) return;
		this.closed = true;
		this.ended++;
	}
}

/** A request that a test can cancel. */
export class RecordedRequest implements IngressRequest {
	readonly id: string;
	readonly headers = {};
	readonly codec = "msgpack";
	readonly receivedAt = 0;
	readonly payload: unknown;
	readonly #callbacks: ((kind: CancelKind) => void)[] = [];
	readonly #cancelled: CancelKind[] = [];

	constructor(payload: unknown, id = "request-1") {
		this.payload = payload;
		this.id = id;
	}

	get signal(): AbortSignal {
		return AbortSignal.abort();
	}

	onCancel(callback: (kind: CancelKind) => void): void {
		this.#callbacks.push(callback);
		for (const kind of this.#cancelled) callback(kind);
	}

	cancel(kind: CancelKind, response: RecordedResponse): void {
		this.#cancelled.push(kind);
		if (kind !== "stop") response.closed = true;
		for (const callback of this.#callbacks) callback(kind);
	}
}
