// SPDX-License-Identifier: Apache-2.0
// Where the ZeroMQ brokers are: named by DYN_ZMQ_BROKER_URL, or found in discovery (component `zmq_broker`).
import { DynamoError, ENV, eventScopePath, parseKey } from "@dynamo-ts/protocols/internal";
import type { Discovery } from "../discovery/discovery.js";
import type { Logger } from "../observability/logging.js";
import type { BrokerEndpoints, BrokerSource } from "./zmq-transport.js";

/** Component under which brokers announce themselves. */
const BROKER_COMPONENT = "zmq_broker";

function bad(value: string): DynamoError {
	const text = `${ENV.DYN_ZMQ_BROKER_URL}=${value} is not valid: it must be xsub=tcp://host:port[;...] , xpub=tcp://host:port[;...]`;
	return new DynamoError("InvalidArgument", text, { publicMessage: text, param: ENV.DYN_ZMQ_BROKER_URL });
}

/**
 * Reads `xsub=tcp://host:port[;...] , xpub=tcp://host:port[;...]`.
 * @throws DynamoError `InvalidArgument`.
 */
export function parseBrokerUrl(value: string): BrokerEndpoints {
	const sides: Record<string, string[]> = {};
	for (const part of value.split(",")) {
		const match = /^\s*(xsub|xpub)=(.*)$/.exec(part);
		if (match === null) throw bad(value);
		const endpoints = (match[2] as string)
			.split(";")
			.map((endpoint) => endpoint.trim())
			.filter((endpoint) => endpoint !== "");
		if (endpoints.some((endpoint) => !/^tcp:\/\/[^\s/]+:\d{1,5}$/.test(endpoint))) throw bad(value);
		sides[match[1] as string] = endpoints;
	}
	const { xsub = [], xpub = [] } = sides;
	if (xsub.length === 0 || xpub.length === 0) throw bad(value);
	return { xsub, xpub };
}

/** Brokers that never change. */
export function fixedBrokers(endpoints: BrokerEndpoints): BrokerSource {
	return async (_namespace, onBrokers) => {
		onBrokers(endpoints);
		return () => {};
	};
}

/** Brokers as discovery shows them. */
export function discoveredBrokers(discovery: Discovery, log: Logger): BrokerSource {
	return async (namespace, onBrokers) => {
		const scope = eventScopePath({ kind: "component", namespace, component: BROKER_COMPONENT });
		const known = new Map<string, BrokerEndpoints>();
		const tell = (): void => {
			const brokers = [...known.values()];
			onBrokers({
				xsub: [...new Set(brokers.flatMap(({ xsub }) => xsub))],
				xpub: [...new Set(brokers.flatMap(({ xpub }) => xpub))],
			});
		};
		const watch = await discovery.watch("v1/event_channels", (event) => {
			const key = parseKey(event.key);
			if (key === undefined || !("scope" in key)) return;
			const path = eventScopePath(key.scope);
			if (path !== scope && !path.startsWith(`${scope}/`)) return;
			if (event.type === "delete") {
				if (known.delete(event.key)) tell();
				return;
			}
			if (event.record.type !== "EventChannel" || event.record.transport.kind !== "ZmqBroker") return;
			const { xsub_endpoints: xsub, xpub_endpoints: xpub } = event.record.transport.config;
			known.set(event.key, { xsub, xpub });
			tell();
		});
		if (known.size === 0) {
			log.warn("no ZeroMQ broker is in discovery yet; events go nowhere until one is", {
				namespace,
				component: BROKER_COMPONENT,
			});
		}
		return () => watch.close();
	};
}
