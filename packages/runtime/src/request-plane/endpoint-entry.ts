// SPDX-License-Identifier: Apache-2.0
import { DynamoError, isDynamoError } from "@dynamo-ts/protocols/internal";
import type {
	CancelKind,
	EndpointHandler,
	EndpointObserver,
	EndpointRegistration,
	IngressRequest,
	RequestObserver,
	ResponseWriter,
} from "./request-plane.js";
import type { Gate, Ticket } from "./turnstile.js";

/** A response under way, as its endpoint sees it. */
export interface ActiveResponse extends ResponseWriter {
	/** Ends the transport now, as if the peer had gone. */
	abandon(kind: CancelKind): void;
}

const IGNORE: RequestObserver = {
	onPrologue() {},
	onResponseBytes() {},
	onError() {},
	onFail() {},
	onCancel() {},
	onClose() {},
};
const IGNORE_ALL: EndpointObserver = { onRequest: () => IGNORE, onInvalid() {} };

/** An endpoint with what is under way at it; the same for every transport. */
export class EndpointEntry implements EndpointRegistration {
	readonly path: string;
	readonly observer: EndpointObserver;
	readonly #handler: EndpointHandler;
	readonly #forget: () => void;
	readonly #active = new Set<ActiveResponse>();
	#drainWaiters: (() => void)[] = [];
	#refusing = false;
	#gates: readonly Gate[] = [];
	/** Of the gates that a request has come to, in their order. */
	readonly #tickets = new Map<ActiveResponse, Ticket[]>();

	constructor(path: string, handler: EndpointHandler, observer: EndpointObserver | undefined, forget: () => void) {
		this.path = path;
		this.#handler = handler;
		this.observer = observer ?? IGNORE_ALL;
		this.#forget = forget;
	}

	get inflight(): number {
		return this.#active.size;
	}

	ready(_signal?: AbortSignal): Promise<void> {
		return Promise.resolve();
	}

	/** True when new requests are to be turned away. */
	get refusing(): boolean {
		return this.#refusing;
	}

	limit(...gates: Gate[]): void {
		this.#gates = gates;
	}

	/**
	 * Why there is no room for a request; undefined: there is.
	 * @param coming requests that were let in and have not run yet.
	 */
	fullness(coming: number): string | undefined {
		for (const gate of this.#gates) {
			const refusal = gate.refusal(coming);
			if (refusal !== undefined) return refusal;
		}
		return undefined;
	}

	refuse(): void {
		this.#refusing = true;
	}

	/** Runs the handler, as soon as there is room; whatever it throws becomes the request's error. */
	run(request: IngressRequest, response: ActiveResponse, observer: RequestObserver): void {
		this.#active.add(response);
		const gates = this.#gates;
		const tickets: Ticket[] = [];
		this.#tickets.set(response, tickets);
		const pass = (at: number): void => {
			// It may have waited in vain.
			if (response.closed) return;
			const gate = gates[at];
			if (gate === undefined) {
				this.#start(request, response, observer);
				return;
			}
			const ticket = gate.enter(() => pass(at + 1));
			// A handler may end its response at once.
			if (this.#active.has(response)) tickets[at] = ticket;
			else gate.leave(ticket);
		};
		pass(0);
	}

	#start(request: IngressRequest, response: ActiveResponse, observer: RequestObserver): void {
		const failed = (error: unknown) => {
			if (response.closed) return;
			observer.onError("generate");
			response.fail(asDynamoError(error));
		};
		try {
			const result = this.#handler(request, response);
			if (result instanceof Promise) result.catch(failed);
		} catch (error) {
			failed(error);
		}
	}

	/** Answers with an error without asking the handler. */
	refuseOne(response: ActiveResponse, error: DynamoError): void {
		this.#active.add(response);
		response.fail(error);
	}

	/** The response is over and its last bytes are handed to the peer, or will never be. */
	done(response: ActiveResponse): void {
		this.#active.delete(response);
		const tickets = this.#tickets.get(response);
		if (tickets !== undefined) {
			this.#tickets.delete(response);
			// From the last gate on: who waits before it has passed the others.
			for (let at = tickets.length - 1; at >= 0; at--) {
				const ticket = tickets[at];
				if (ticket !== undefined) this.#gates[at]?.leave(ticket);
			}
		}
		if (this.#active.size > 0) return;
		const waiters = this.#drainWaiters;
		this.#drainWaiters = [];
		for (const wake of waiters) wake();
	}

	drained(timeoutMs: number): Promise<boolean> {
		if (this.#active.size === 0) return Promise.resolve(true);
		return new Promise((resolve) => {
			const timer = setTimeout(() => {
				this.#drainWaiters = this.#drainWaiters.filter((waiter) => waiter !== wake);
				resolve(false);
			}, timeoutMs);
			const wake = () => {
				clearTimeout(timer);
				resolve(true);
			};
			this.#drainWaiters.push(wake);
		});
	}

	close(): void {
		this.#refusing = true;
		this.#forget();
		for (const response of [...this.#active]) response.abandon("disconnect");
	}
}

function asDynamoError(error: unknown): DynamoError {
	if (isDynamoError(error)) return error;
	const text = error instanceof Error ? error.message : String(error);
	return new DynamoError("Internal", `request handler failed: ${text}`, { cause: error });
}
