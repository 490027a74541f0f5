// SPDX-License-Identifier: Apache-2.0
// The discovery backend that a configuration names.
import type { RuntimeConfig } from "../config.js";
import type { Logger } from "../observability/logging.js";
import type { Discovery } from "./discovery.js";
import { EtcdDiscovery } from "./etcd/etcd.js";
import { FileDiscovery } from "./file.js";
import { KubernetesDiscovery } from "./kubernetes/kubernetes.js";
import { MemDiscovery, type MemStore } from "./mem.js";

/**
 * Opens the store in which this process finds the others.
 * @param memStore what the mem backend uses.
 * @param signal gives up waiting for a store that is not there yet.
 * @throws DynamoError `Unavailable` when the store cannot be used, `InvalidArgument` for bad settings.
 */
export async function openDiscovery(
	config: RuntimeConfig,
	log: Logger,
	memStore: MemStore,
	signal?: AbortSignal,
): Promise<Discovery> {
	switch (config.discoveryBackend) {
		case "mem":
			return new MemDiscovery(memStore);
		case "file":
			return FileDiscovery.open({ root: config.fileKvRoot, log });
		case "kubernetes":
			return KubernetesDiscovery.open({ config: config.kubernetes, log });
		case "etcd":
			return EtcdDiscovery.open({ config: config.etcd, log, ...(signal ? { signal } : {}) });
	}
}
