// SPDX-License-Identifier: Apache-2.0
import type { DynamoError } from "@dynamo-ts/protocols/internal";
import type { ResponseWriter } from "@dynamo-ts/runtime";

/** Passes everything on, and tells how the response ended. */
export class ObservedWriter implements ResponseWriter {
	readonly #inner: ResponseWriter;
	readonly #onEnd: (error: DynamoError | undefined) => void;

	constructor(inner: ResponseWriter, onEnd: (error: DynamoError | undefined) => void) {
		this.#inner = inner;
		this.#onEnd = onEnd;
	}

	get closed(): boolean {
		return this.#inner.closed;
	}

	get bufferedBytes(): number {
		return this.#inner.bufferedBytes;
	}

	send(item: Parameters<ResponseWriter["send"]>[0]): void {
		this.#inner.send(item);
	}

	fail(error: DynamoError): void {
		this.#onEnd(error);
		this.#inner.fail(error);
	}

	end(): void {
		this.#onEnd(undefined);
		this.#inner.end();
	}
}
