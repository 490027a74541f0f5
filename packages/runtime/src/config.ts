// SPDX-License-Identifier: Apache-2.0
import type { RequestPlaneCodec } from "@dynamo-ts/protocols/internal";
import type { DiscoveryBackend } from "./discovery/discovery.js";

/** How a process logs. */
export interface LogConfig {
	/** `info`, or `default_level[,target[=level]]...`. */
	readonly filter: string;
	readonly format: "readable" | "jsonl";
	/** Colours in the readable format. */
	readonly ansi: boolean;
	/** Local time with offset instead of UTC. */
	readonly localTime: boolean;
	/** Written into every JSONL line as `service`; absent when unset. */
	readonly service?: string;
}

/** Everything that the runtime of one process can be told. All times are milliseconds, all sizes bytes. */
export interface RuntimeConfig {
	readonly discoveryBackend: DiscoveryBackend;
	/** Folder of the file backend. */
	readonly fileKvRoot: string;
	readonly requestPlane: "tcp";
	/** What our endpoint records ask clients to send. */
	readonly requestPlaneCodec: RequestPlaneCodec;
	/** Listener of the request plane, and the host that it is advertised under. Port 0: any. */
	readonly tcpRpcHost: string;
	readonly tcpRpcPort: number;
	/** Listener that workers dial back to. */
	readonly tcpResponseHost: string;
	readonly tcpResponsePort: number;
	readonly tcpConnectTimeoutMs: number;
	/** From sending a request to its acknowledgement. */
	readonly tcpRequestTimeoutMs: number;
	/** Most request connections per address. */
	readonly tcpPoolSize: number;
	/** Unused request connections are closed after this. */
	readonly tcpPoolIdleMs: number;
	readonly tcpMaxMessageBytes: number;
	/** From sending a request to the first item; 0 for none. */
	readonly firstResponseTimeoutMs: number;
	/** Between two items; 0 for none. */
	readonly idleTimeoutMs: number;
	/** A client that lets more than this pile up on its response stream is cut off. */
	readonly maxBufferedResponseBytes: number;
	/** How long a failed instance is put aside. */
	readonly inhibitedDurationMs: number;
	readonly systemHost: string;
	/** -1: no system server, 0: any port. */
	readonly systemPort: number;
	/** Ready from the start, before any endpoint is. */
	readonly startsReady: boolean;
	/** After leaving discovery, requests are still taken for this long. */
	readonly shutdownGraceMs: number;
	/** Longest wait for requests under way at shutdown. */
	readonly shutdownTimeoutMs: number;
	readonly log: LogConfig;
}
