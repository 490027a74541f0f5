// SPDX-License-Identifier: Apache-2.0
// The lease of a process against an etcd of which single calls fail.
import { expect, it, vi } from "vitest";
import { createLogger } from "../../observability/logging.js";
import { ConnectionReport } from "../connection-report.js";
import type { EtcdClient } from "./etcd-client.js";
import { EtcdLease } from "./etcd-lease.js";

const log = createLogger({ filter: "off", format: "readable", ansi: false, localTime: false }, "test");

it("a lease that is gone is granted again though no keep-alive gets through in time", async () => {
	const granted: bigint[] = [];
	const client = {
		renewLease: async () => {
			throw new Error("4 DEADLINE_EXCEEDED: Deadline exceeded");
		},
		leaseKeys: async () => ({ ttlSeconds: granted.length > 0 ? 3 : -1, keys: new Set<string>() }),
		grantLease: async (_ttlSeconds: number, id: bigint) => {
			granted.push(id);
			return id;
		},
	} as unknown as EtcdClient;
	const reconcile = vi.fn(async () => {});
	const report = new ConnectionReport(log, "etcd");
	const lease = new EtcdLease({ client, id: 7n, ttlSeconds: 3, report, log, reconcile });
	try {
		lease.check();
		await vi.waitFor(() => expect(reconcile).toHaveBeenCalled());
		expect(granted).toEqual([7n]);
	} finally {
		await lease.close();
	}
});
