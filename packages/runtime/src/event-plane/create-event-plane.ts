// SPDX-License-Identifier: Apache-2.0
// The event plane that a runtime's settings ask for.
import type { Discovery } from "../discovery/discovery.js";
import type { NatsConnection } from "../net/nats-connection.js";
import type { Logger } from "../observability/logging.js";
import type { MetricsRegistry } from "../observability/metrics.js";
import { type EventHost, resolveEventHost } from "./event-host.js";
import type { EventPlane } from "./event-plane.js";
import type { EventSettings } from "./event-settings.js";
import type { EventTransportDriver } from "./event-transport.js";
import { MemEventDriver } from "./mem-transport.js";
import { NatsDriver } from "./nats-transport.js";
import { RuntimeEventPlane } from "./runtime-event-plane.js";
import { discoveredBrokers, fixedBrokers, parseBrokerUrl } from "./zmq-brokers.js";
import { ZmqBrokerDriver, ZmqDirectDriver } from "./zmq-transport.js";

export interface EventPlaneSetup {
	readonly settings: EventSettings;
	readonly discovery: Discovery;
	/** What runtimes of this process share under mem discovery. */
	readonly world: object | undefined;
	readonly nats: () => Promise<NatsConnection>;
	readonly metrics: MetricsRegistry;
	readonly log: Logger;
}

/**
 * Opens nothing yet: libraries and sockets come with the first publisher or subscription.
 * @throws DynamoError `InvalidArgument` for a broker URL that is none.
 */
export function createEventPlane(setup: EventPlaneSetup): EventPlane {
	const { discovery, metrics, log } = setup;
	return new RuntimeEventPlane({ driver: driverFor(setup), discovery, metrics, log });
}

function driverFor({ settings, discovery, world, nats, log }: EventPlaneSetup): EventTransportDriver {
	// Within one process nothing has to leave it, unless that was asked for.
	if (settings.plane === undefined && world !== undefined) return new MemEventDriver(world);
	if (settings.plane === "nats") return new NatsDriver(nats);
	if (settings.brokerUrl !== undefined) return new ZmqBrokerDriver(fixedBrokers(parseBrokerUrl(settings.brokerUrl)));
	if (settings.brokerEnabled === true) return new ZmqBrokerDriver(discoveredBrokers(discovery, log));
	let host: Promise<EventHost> | undefined;
	return new ZmqDirectDriver(() => {
		host ??= resolveEventHost(settings.host, settings.bindHost);
		return host;
	});
}
