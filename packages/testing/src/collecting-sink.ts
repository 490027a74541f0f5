// SPDX-License-Identifier: Apache-2.0
import type { Annotated, DynamoError } from "@dynamo-ts/protocols/internal";
import type { ResponseSink } from "@dynamo-ts/runtime/internal";

/** A sink that keeps everything and lets a test await the end. */
export class CollectingSink implements ResponseSink {
	readonly items: Annotated<unknown>[] = [];
	/** Calls of onEnd and onError; must become exactly one. */
	ends = 0;
	error: DynamoError | undefined;
	readonly done: Promise<void>;
	onFirst: (() => void) | undefined;
	#resolve: () => void = () => {};

	constructor() {
		this.done = new Promise((resolve) => {
			this.#resolve = resolve;
		});
	}
	onItem(item: Annotated<unknown>): void {
		if (this.ends > 0) throw new Error("an item came after the end");
		this.items.push(item);
		if (this.items.length === 1) this.onFirst?.();
	}
	onEnd(): void {
		this.ends++;
		this.#resolve();
	}
	onError(error: DynamoError): void {
		this.ends++;
		this.error = error;
		this.#resolve();
	}
}
