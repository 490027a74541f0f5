// SPDX-License-Identifier: Apache-2.0
// What a prefill worker keeps for decode workers: by handle, for a limited time.
import { randomBytes } from "node:crypto";
import type { HeldKv, KvPort } from "@dynamo-ts/engine";
import { HANDLE_BYTES } from "./transfer-params.js";

/** How keeping ended. */
export type HoldOutcome = "pulled" | "expired" | "given_up" | "released";

interface Hold {
	readonly held: HeldKv;
	readonly expiresAt: number;
}

export class HoldRegistry {
	readonly #kv: KvPort;
	readonly #holdMs: number;
	readonly #onEnd: (outcome: HoldOutcome) => void;
	/** The oldest first. */
	readonly #holds = new Map<string, Hold>();
	readonly #handles = new Map<number, string>();
	#timer: NodeJS.Timeout | undefined;

	/** @param holdMs longest time that something is kept, milliseconds. */
	constructor(kv: KvPort, holdMs: number, onEnd: (outcome: HoldOutcome) => void) {
		this.#kv = kv;
		this.#holdMs = holdMs;
		this.#onEnd = onEnd;
		kv.onGivenUp((id) => {
			const handle = this.#handles.get(id);
			if (handle !== undefined) this.#forget(handle, "given_up");
		});
	}

	/** Prompts that are kept. */
	get size(): number {
		return this.#holds.size;
	}

	/** @returns the handle, 128 random bits in hex. */
	add(held: HeldKv): string {
		const handle = randomBytes(HANDLE_BYTES).toString("hex");
		this.#holds.set(handle, { held, expiresAt: performance.now() + this.#holdMs });
		this.#handles.set(held.id, handle);
		this.#timer ??= setTimeout(() => this.#expire(), this.#holdMs).unref();
		return handle;
	}

	/** Begins to read; `KvPort.close` ends it. @returns undefined when the handle is unknown or its blocks are gone. */
	open(handle: string): HeldKv | undefined {
		const hold = this.#holds.get(handle);
		return hold !== undefined && this.#kv.open(hold.held.id) ? hold.held : undefined;
	}

	/** Frees what a handle names, after its last reader. Unknown ones are ignored. */
	release(handle: string, outcome: HoldOutcome): void {
		const hold = this.#holds.get(handle);
		if (hold === undefined) return;
		this.#forget(handle, outcome);
		this.#kv.release(hold.held.id);
	}

	releaseAll(): void {
		for (const handle of [...this.#holds.keys()]) this.release(handle, "released");
		clearTimeout(this.#timer);
	}

	#forget(handle: string, outcome: HoldOutcome): void {
		const hold = this.#holds.get(handle);
		if (hold === undefined) return;
		this.#holds.delete(handle);
		this.#handles.delete(hold.held.id);
		this.#onEnd(outcome);
	}

	#expire(): void {
		this.#timer = undefined;
		const now = performance.now();
		for (const [handle, { expiresAt }] of this.#holds) {
			if (expiresAt > now) {
				this.#timer = setTimeout(() => this.#expire(), expiresAt - now).unref();
				return;
			}
			this.release(handle, "expired");
		}
	}
}
