// SPDX-License-Identifier: Apache-2.0
import { defineConfig } from "vitest/config";

// Tests read the packages' sources (export condition "ws-source"): no build is needed, except where a
// test starts a process or a worker thread, which run what `npm run setup` built.
export default defineConfig({
	resolve: { conditions: ["ws-source"] },
	ssr: { resolve: { conditions: ["ws-source"], externalConditions: ["ws-source"] } },
	test: {
		include: ["packages/*/src/**/*.test.ts", "tests/**/*.test.ts"],
		globalSetup: ["tests/global-setup.ts"],
		testTimeout: 30_000,
		hookTimeout: 60_000,
		maxWorkers: 2,
		// Tests with real processes share two cores in CI: one that the machine starved gets a second try, and shows it.
		retry: process.env.CI ? 1 : 0,
	},
});
