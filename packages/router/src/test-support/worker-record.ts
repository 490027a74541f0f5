// SPDX-License-Identifier: Apache-2.0
import type { EndpointRecord } from "@dynamo-ts/protocols/internal";

/** A worker that nobody can reach, as discovery would tell of it. */
export function workerRecord(instanceId: bigint, more: Partial<EndpointRecord> = {}): EndpointRecord {
	return {
		type: "Endpoint",
		namespace: "dynamo",
		component: "backend",
		endpoint: "generate",
		instance_id: instanceId,
		transport: { tcp: `127.0.0.1:1/${instanceId}/dynamo/backend/generate` },
		...more,
	};
}
