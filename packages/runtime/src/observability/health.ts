// SPDX-License-Identifier: Apache-2.0

/** Readiness of the process as its system server tells it. */
export interface Health {
	/** True when the process should get traffic. */
	readonly ready: boolean;
	/** Ready flag by endpoint name. */
	endpoints(): Record<string, boolean>;
	/**
	 * Sets an endpoint's state. Only endpoints with `gating` (a health payload) decide about {@link ready}: it is
	 * true when there is at least one and all are ready.
	 */
	setEndpointReady(name: string, ready: boolean, options?: { gating?: boolean }): void;
	removeEndpoint(name: string): void;
	/** Not ready from now on, whatever the endpoints say. */
	withdraw(): void;
}

/** The HTTP server on the system port; see {@link Health} for what it answers. */
export interface SystemServer {
	/** `http://host:port`, with the real port. */
	readonly url: string;
	readonly port: number;
	/**
	 * Serves a file at `/v1/metadata/{path}` as `application/octet-stream`.
	 * @param path `{ns}/{component}/{endpoint}/{slug}/{suffix}/{file}`.
	 * @returns the URL to put into a model card.
	 */
	addMetadataFile(path: string, file: string): string;
	removeMetadataFile(path: string): void;
	close(): Promise<void>;
}
