// SPDX-License-Identifier: Apache-2.0
import { constants } from "node:os";
import { FileDiscovery } from "./discovery/file.js";
import type { DistributedRuntime } from "./runtime.js";

export interface SignalOptions {
	/** Runs first: stop taking new work and finish what is under way. The runtime is shut down after it. */
	readonly onDrain?: (signal: NodeJS.Signals) => Promise<void> | void;
	/** Ends the process; replaced in tests. */
	readonly exit?: (code: number) => void;
}

/** Beyond the runtime's own limits; a step of the shutdown that hangs must not keep the process. */
const SHUTDOWN_MARGIN_MS = 30_000;

/**
 * SIGTERM and SIGINT shut the runtime down in order and end the process with code 0. A second one ends it at once,
 * with 128 + the signal's number.
 * @returns how to remove the handlers.
 */
export function installSignalHandlers(runtime: DistributedRuntime, options: SignalOptions = {}): () => void {
	const exit = options.exit ?? ((code) => process.exit(code));
	let first = true;
	const onSignal = (signal: NodeJS.Signals): void => {
		if (!first) {
			if (runtime.discovery instanceof FileDiscovery) runtime.discovery.removeOwnFilesNow();
			exit(128 + (constants.signals[signal] ?? 0));
			return;
		}
		first = false;
		runtime.log.info("shutting down; a second signal ends the process at once", { signal });
		const { shutdownGraceMs, shutdownTimeoutMs } = runtime.config;
		const guard = setTimeout(
			() => {
				runtime.log.error("shutdown did not end in time");
				exit(1);
			},
			shutdownGraceMs + 2 * shutdownTimeoutMs + SHUTDOWN_MARGIN_MS,
		);
		guard.unref();
		void (async () => {
			let code = 0;
			try {
				runtime.health.withdraw();
				await options.onDrain?.(signal);
			} catch (error) {
				code = 1;
				runtime.log.error("draining failed", { error });
			}
			try {
				await runtime.shutdown();
			} catch (error) {
				code = 1;
				runtime.log.error("shutdown failed", { error });
			}
			clearTimeout(guard);
			exit(code);
		})();
	};
	const signals = ["SIGTERM", "SIGINT"] as const;
	for (const signal of signals) process.on(signal, onSignal);
	return () => {
		for (const signal of signals) process.off(signal, onSignal);
	};
}
