// SPDX-License-Identifier: Apache-2.0
// How a process sends and receives events, from Dynamo's variables.
import { ENV } from "@dynamo-ts/protocols/internal";
import type { EnvReader } from "../config.js";

export interface EventSettings {
	/** How events travel; absent: within the process under mem discovery, else over ZeroMQ. */
	readonly plane?: "zmq" | "nats";
	/** IP address, host name or interface under which this process' event sockets are advertised; absent: found out. */
	readonly host?: string;
	/** What they are bound to, where that is something else. */
	readonly bindHost?: string;
	/** `xsub=tcp://host:port[;...] , xpub=tcp://host:port[;...]`: events go through these brokers. */
	readonly brokerUrl?: string;
	/** Events go through the brokers that discovery shows. */
	readonly brokerEnabled?: boolean;
}

/** @throws DynamoError `InvalidArgument` for a value that is none. */
export function eventSettingsFromEnv(read: EnvReader): EventSettings {
	const optional = (name: string): string | undefined => read.text(name, "") || undefined;
	const settings: Record<keyof EventSettings, unknown> = {
		plane:
			optional(ENV.DYN_EVENT_PLANE) === undefined
				? undefined
				: read.choice(ENV.DYN_EVENT_PLANE, ["zmq", "nats"], "zmq"),
		host: optional(ENV.DYN_EVENT_PLANE_HOST),
		bindHost: optional(ENV.DYN_EVENT_PLANE_BIND_HOST),
		brokerUrl: optional(ENV.DYN_ZMQ_BROKER_URL),
		brokerEnabled: read.flag(ENV.DYN_ZMQ_BROKER_ENABLED, false),
	};
	return Object.fromEntries(Object.entries(settings).filter(([, value]) => value !== undefined)) as EventSettings;
}
