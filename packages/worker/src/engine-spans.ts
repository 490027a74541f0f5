// SPDX-License-Identifier: Apache-2.0
// What a request did at the engine, as spans of its own: waiting, its prompt, its answer. Made from the times that the
// engine tells, so that a token costs nothing.
import type { EngineOutput } from "@dynamo-ts/engine";
import type { Span } from "@dynamo-ts/runtime";
import { wallClockMs } from "@dynamo-ts/runtime/internal";

const MODULE = "dynamo_worker::engine";

export class EngineSpans {
	private readonly parent: Span;
	private readonly submittedAt = wallClockMs();
	private decode: Span | undefined;
	private over = false;

	/** Undefined where the request is not recorded. */
	static of(parent: Span | undefined): EngineSpans | undefined {
		return parent?.recording === true ? new EngineSpans(parent) : undefined;
	}

	private constructor(parent: Span) {
		this.parent = parent;
	}

	/** The first output of a choice; that of the first one counts. */
	onFirst(output: EngineOutput): void {
		if (this.decode !== undefined || this.over) return;
		const now = wallClockMs();
		const begun = Math.max(this.submittedAt, now - (output.prefillSeconds ?? 0) * 1000);
		this.part("queue", this.submittedAt).end(begun);
		const prefill = this.part("prefill", begun);
		if (output.promptTokens !== undefined) prefill.set("prompt_tokens", String(output.promptTokens));
		if (output.cachedTokens !== undefined) prefill.set("cached_tokens", String(output.cachedTokens));
		prefill.end(now);
		this.decode = this.part("decode", now);
	}

	/** @param completionTokens of the last choice, where the engine told them. */
	end(completionTokens?: number): void {
		if (this.over) return;
		this.over = true;
		if (this.decode === undefined) {
			this.part("queue", this.submittedAt).end();
			return;
		}
		if (completionTokens !== undefined) this.decode.set("completion_tokens", String(completionTokens));
		this.decode.end();
	}

	private part(name: string, startedAt: number): Span {
		return this.parent.child(name, { target: MODULE, module: MODULE, startedAt });
	}
}
