// SPDX-License-Identifier: Apache-2.0
import { DynamoError, isDynamoError } from "@dynamo-ts/protocols/internal";
import type { Admission, Ticket } from "./admission.js";
import type {
	CancelKind,
	EndpointHandler,
	EndpointObserver,
	EndpointRegistration,
	IngressRequest,
	RequestObserver,
	ResponseWriter,
} from "./request-plane.js";

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
	#admission: Admission | undefined;
	readonly #tickets = new Map<ActiveResponse, Ticket>();

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

	limit(admission: Admission): void {
		this.#admission = admission;
	}

	/**
	 * Why there is no room for a request; undefined: there is.
	 * @param coming requests that were let in and have not run yet.
	 */
	fullness(coming: number): string | undefined {
		return this.#admission?.refusal(coming);
	}

	refuse(): void {
		this.#refusing = true;
	}

	/** Runs the handler, as soon as there is room; whatever it throws becomes the request's error. */
	run(request: IngressRequest, response: ActiveResponse, observer: RequestObserver): void {
		this.#active.add(response);
		if (this.#admission === undefined) {
			this.#start(request, response, observer);
			return;
		}
		const ticket = this.#admission.enter(() => {
			if (!response.closed) this.#start(request, response, observer);
		});
		// A handler may end its response at once.
		if (this.#active.has(response)) this.#tickets.set(response, ticket);
		else this.#admission.leave(ticket);
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
		const ticket = this.#tickets.get(response);
		if (ticket !== undefined) {
			this.#tickets.delete(response);
			this.#admission?.leave(ticket);
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
