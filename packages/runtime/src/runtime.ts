// SPDX-License-Identifier: Apache-2.0
import type { Namespace } from "./component.js";
import type { RuntimeConfig } from "./config.js";
import type { Discovery } from "./discovery/discovery.js";
import type { Health, SystemServer } from "./observability/health.js";
import type { Logger } from "./observability/logging.js";
import type { MetricsRegistry } from "./observability/metrics.js";

/** The runtime of one process: discovery, request plane, metrics, logs, system server. */
export abstract class DistributedRuntime {
	abstract readonly config: RuntimeConfig;
	abstract readonly instanceId: bigint;
	abstract readonly log: Logger;
	abstract readonly metrics: MetricsRegistry;
	abstract readonly discovery: Discovery;
	abstract readonly health: Health;
	abstract readonly systemServer: SystemServer | undefined;
	/** Aborted when shutdown begins. */
	abstract readonly signal: AbortSignal;
	/** @throws DynamoError `InvalidArgument` for bad settings, `Unavailable` for a taken port. */
	static create(_config?: Partial<RuntimeConfig>): Promise<DistributedRuntime> {
		throw new Error("being written");
	}
	abstract namespace(name: string): Namespace;
	/** Ordered and idempotent: readiness, records, requests under way, planes. */
	abstract shutdown(): Promise<void>;
}
