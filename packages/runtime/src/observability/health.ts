// SPDX-License-Identifier: Apache-2.0

/** Readiness of the process as its system server tells it. */
export interface Health {
	/** True when the process should get traffic. */
	readonly ready: boolean;
	/** Ready flag by endpoint name. */
	endpoints(): Record<string, boolean>;
	/**
	 * Sets an endpoint's state. Only endpoints with `gating` (a health payload) decide about {@link ready}: it is
	 * true when there is at least one and all are ready. Without the option the endpoint keeps what it had.
	 */
	setEndpointReady(name: string, ready: boolean, options?: { gating?: boolean }): void;
	removeEndpoint(name: string): void;
	/** Not ready from now on, whatever the endpoints say. */
	withdraw(): void;
}

interface EndpointHealth {
	ready: boolean;
	gating: boolean;
}

/**
 * @param startsReady ready as long as no endpoint with a health payload says otherwise.
 * @param required names of endpoints that must be there and ready, with or without a payload.
 */
export function createHealth(startsReady: boolean, required: readonly string[] = []): Health {
	const endpoints = new Map<string, EndpointHealth>();
	let withdrawn = false;
	return {
		get ready() {
			if (withdrawn) return false;
			let gating = 0;
			for (const endpoint of endpoints.values()) {
				if (!endpoint.gating) continue;
				if (!endpoint.ready) return false;
				gating++;
			}
			for (const name of required) if (endpoints.get(name)?.ready !== true) return false;
			return startsReady || gating > 0 || required.length > 0;
		},
		endpoints: () => Object.fromEntries([...endpoints].map(([name, { ready }]) => [name, ready])),
		setEndpointReady(name, ready, options) {
			const gating = options?.gating ?? endpoints.get(name)?.gating ?? false;
			endpoints.set(name, { ready, gating });
		},
		removeEndpoint: (name) => void endpoints.delete(name),
		withdraw() {
			withdrawn = true;
		},
	};
}
