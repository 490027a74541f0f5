// SPDX-License-Identifier: Apache-2.0
// `--kv-events-config` as vLLM has it, and the sockets that Dynamo's mocker opens by port.
import { DynamoError } from "@dynamo-ts/protocols/internal";

/** A socket on which an engine tells its cache's changes in vLLM's format. */
export interface EngineSocketConfig {
	/** `tcp://host:port`; `*` for all interfaces. The data-parallel rank is added to the port. */
	readonly endpoint: string;
	/** Where batches that were missed can be asked for again. */
	readonly replayEndpoint?: string | undefined;
	/** First frame of each message; default empty. */
	readonly topic?: string | undefined;
	/** Batches kept for replay; default 10000. */
	readonly bufferSteps?: number | undefined;
	/** Messages kept per subscriber that does not keep up; default 100000. */
	readonly highWaterMark?: number | undefined;
	/** Batches that may wait to be sent; default 100000. */
	readonly maxQueueSize?: number | undefined;
	/** Replayed messages carry the topic frame, as the mocker's do and vLLM's do not; default false. */
	readonly replayTopic?: boolean | undefined;
}

/** What a worker does about KV events. */
export interface KvEventsConfig {
	/** Told to routers, and on the socket if there is one; default true. */
	readonly enabled: boolean;
	readonly socket?: EngineSocketConfig | undefined;
}

const DEFAULT_ENDPOINT = "tcp://*:5557";
const ENDPOINT = /^tcp:\/\/(\*|\[[0-9a-f:.]+\]|[^\s/:*]+):(\d{1,5})$/i;

function bad(what: string): DynamoError {
	const text = `--kv-events-config: ${what}`;
	return new DynamoError("InvalidArgument", text, { publicMessage: text, param: "kv-events-config" });
}

/** The endpoint of a rank. @throws DynamoError `InvalidArgument`. */
export function endpointOfRank(endpoint: string, dpRank: number): string {
	const match = ENDPOINT.exec(endpoint);
	const port = Number(match?.[2]) + dpRank;
	if (match === null || !(port >= 1 && port <= 65_535)) {
		throw bad(`endpoint ${JSON.stringify(endpoint)} must be tcp://host:port (tcp://*:port for all interfaces)`);
	}
	return `tcp://${match[1]}:${port}`;
}

/**
 * Reads vLLM's JSON: `{"enable_kv_cache_events":true,"publisher":"zmq","endpoint":"tcp://*:5557",...}`. Without
 * `publisher` events go to routers alone.
 * @throws DynamoError `InvalidArgument` that names the member at fault.
 */
export function parseKvEventsConfig(text: string): KvEventsConfig {
	let json: unknown;
	try {
		json = JSON.parse(text);
	} catch (error) {
		throw bad(`is no JSON (${(error as Error).message})`);
	}
	if (typeof json !== "object" || json === null || Array.isArray(json)) throw bad("must be a JSON object");
	const config = json as Record<string, unknown>;
	const optional = <T>(name: string, isRight: (value: unknown) => boolean, what: string): T | undefined => {
		const value = config[name];
		if (value === undefined || value === null) return undefined;
		if (!isRight(value)) throw bad(`${name} must be ${what}`);
		return value as T;
	};
	const isText = (value: unknown) => typeof value === "string";
	const count = (name: string) =>
		optional<number>(
			name,
			(value) => Number.isInteger(value) && (value as number) >= 1,
			"a whole number of at least 1",
		);
	const enabled = optional<boolean>("enable_kv_cache_events", (value) => typeof value === "boolean", "true or false");
	const publisher = optional<string>("publisher", (value) => value === "zmq" || value === "null", '"zmq" or "null"');
	const endpoint = optional<string>("endpoint", isText, "a string") ?? DEFAULT_ENDPOINT;
	const replayEndpoint = optional<string>("replay_endpoint", isText, "a string");
	for (const one of [endpoint, replayEndpoint]) if (one !== undefined) endpointOfRank(one, 0);
	const socket: EngineSocketConfig = {
		endpoint,
		replayEndpoint,
		topic: optional("topic", isText, "a string"),
		bufferSteps: count("buffer_steps"),
		highWaterMark: count("hwm"),
		maxQueueSize: count("max_queue_size"),
	};
	return publisher === "zmq" && enabled !== false ? { enabled: true, socket } : { enabled: enabled !== false };
}
