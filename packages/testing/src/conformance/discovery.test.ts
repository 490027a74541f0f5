// SPDX-License-Identifier: Apache-2.0
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createLogger, createMemStore, FileDiscovery, MemDiscovery } from "@dynamo-ts/runtime/internal";
import { discoveryConformance } from "./discovery.js";

discoveryConformance("mem", async () => {
	const store = createMemStore();
	return { peer: async () => new MemDiscovery(store), dispose: async () => {} };
});

discoveryConformance("file", async () => {
	const root = await mkdtemp(join(tmpdir(), "discovery-"));
	const log = createLogger({ filter: "error", format: "readable", ansi: false, localTime: false });
	return {
		peer: () => FileDiscovery.open({ root, log }),
		dispose: () => rm(root, { recursive: true, force: true }),
	};
});
