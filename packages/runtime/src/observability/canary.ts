// SPDX-License-Identifier: Apache-2.0
// Health checks of an endpoint of this process: a request of its own when nobody else's has proved lately that it works.
import { randomUUID } from "node:crypto";
import { type Annotated, DynamoError, failureClass, isDynamoError } from "@dynamo-ts/protocols/internal";
import { CancellableRequest } from "../request-plane/ingress-request.js";
import type { EndpointHandler, ResponseWriter } from "../request-plane/request-plane.js";
import type { Logger } from "./logging.js";

export interface CanaryOptions {
	readonly handler: EndpointHandler;
	/** The body of the check. */
	readonly payload: unknown;
	/** Silence of the endpoint after which it is asked, milliseconds. */
	readonly waitMs: number;
	/** Longest wait for its first item, milliseconds. */
	readonly timeoutMs: number;
	/** Told after each check, and when traffic proved the same. */
	readonly onResult: (healthy: boolean) => void;
	readonly log: Logger;
}

/**
 * Asks an endpoint at the start and then whenever `waitMs` has passed without an item in any of its responses. The
 * check does not go over the network and is in no metric of requests.
 */
export class Canary {
	readonly #options: CanaryOptions;
	#timer: NodeJS.Timeout | undefined;
	#active = false;
	#healthy: boolean | undefined;
	/** The last check; it may be decided and not yet over. */
	#check: CanaryCall | undefined;
	#stopped = false;

	constructor(options: CanaryOptions) {
		this.#options = options;
	}

	/** An item of a response went out: the endpoint works. Called for each, so it does next to nothing. */
	readonly activity = (): void => {
		this.#active = true;
	};

	/** Asks now, and from then on. Works after {@link stop} too. */
	start(): void {
		this.stop();
		this.#stopped = false;
		this.#healthy = undefined;
		this.#ask();
	}

	/** Ends a check that is under way; no result comes any more. */
	stop(): void {
		this.#stopped = true;
		clearTimeout(this.#timer);
		this.#check?.cancel();
		this.#check = undefined;
	}

	#wait(): void {
		if (this.#stopped) return;
		this.#timer = setTimeout(() => {
			if (this.#active) {
				this.#active = false;
				this.#tell(true, undefined);
				this.#wait();
			} else this.#ask();
		}, this.#options.waitMs);
		this.#timer.unref();
	}

	#ask(): void {
		const { handler, payload, timeoutMs } = this.#options;
		this.#active = false;
		this.#check = new CanaryCall(handler, structuredClone(payload), timeoutMs, (error) => {
			if (this.#stopped) return;
			// A full endpoint is busy, not ill; whatever it was before, it still is.
			const busy = error !== undefined && failureClass(error) === "CapacityExhausted";
			if (!busy) this.#tell(error === undefined, error);
			this.#wait();
		});
		this.#check.run();
	}

	#tell(healthy: boolean, error: DynamoError | undefined): void {
		if (healthy !== this.#healthy) {
			if (!healthy) this.#options.log.warn("health check failed", { error: error?.message });
			else if (this.#healthy === false) this.#options.log.info("health check passed again");
		}
		this.#healthy = healthy;
		this.#options.onResult(healthy);
	}
}

/**
 * One check: a request within the process. Decided by its first item, or by whatever comes instead; whatever is left of
 * it at the time limit is cancelled.
 */
class CanaryCall implements ResponseWriter {
	readonly bufferedBytes = 0;
	readonly #handler: EndpointHandler;
	readonly #request: CancellableRequest;
	readonly #timeoutMs: number;
	#onResult: ((error: DynamoError | undefined) => void) | undefined;
	#timer: NodeJS.Timeout | undefined;
	#closed = false;

	constructor(
		handler: EndpointHandler,
		payload: unknown,
		timeoutMs: number,
		onResult: (error: DynamoError | undefined) => void,
	) {
		this.#handler = handler;
		this.#timeoutMs = timeoutMs;
		this.#onResult = onResult;
		const request = {
			id: randomUUID(),
			headers: {},
			payload,
			codec: "msgpack",
			receivedAt: performance.now(),
		} as const;
		this.#request = new CancellableRequest(request, () => {});
	}

	get closed(): boolean {
		return this.#closed;
	}

	run(): void {
		this.#timer = setTimeout(() => {
			const error = new DynamoError("ResponseTimeout", `no answer to a health check within ${this.#timeoutMs} ms`);
			this.#decide(error);
			this.cancel();
		}, this.#timeoutMs);
		this.#timer.unref();
		try {
			const result = this.#handler(this.#request, this);
			if (result instanceof Promise) result.catch((error: unknown) => this.fail(asDynamoError(error)));
		} catch (error) {
			this.fail(asDynamoError(error));
		}
	}

	/** The handler may stop; the request is over. */
	cancel(): void {
		if (this.#closed) return;
		this.#closed = true;
		clearTimeout(this.#timer);
		this.#request.cancel("kill");
		this.#request.finish();
	}

	send(item: Annotated<unknown>): void {
		if (this.#closed) return;
		const bad = item.event === "error" || (item.error !== undefined && item.error !== null);
		this.#decide(bad ? new DynamoError("Unknown", item.comment?.join("; ") ?? "an error item") : undefined);
	}

	fail(error: DynamoError): void {
		if (this.#closed) return;
		this.#end();
		this.#decide(error);
	}

	end(): void {
		if (this.#closed) return;
		this.#end();
		this.#decide(new DynamoError("BackendProtocol", "a health check ended without an item"));
	}

	#end(): void {
		this.#closed = true;
		clearTimeout(this.#timer);
		this.#request.finish();
	}

	#decide(error: DynamoError | undefined): void {
		const onResult = this.#onResult;
		if (onResult === undefined) return;
		this.#onResult = undefined;
		onResult(error);
	}
}

function asDynamoError(error: unknown): DynamoError {
	if (isDynamoError(error)) return error;
	return new DynamoError("Internal", error instanceof Error ? error.message : String(error), { cause: error });
}
