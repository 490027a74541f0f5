// SPDX-License-Identifier: Apache-2.0
import { constants } from "node:os";
import { EXIT } from "./cli-error.js";
import type { Console } from "./console.js";

type StopStep = () => Promise<void> | void;

/** Longest wait, at the end, for work that tidies up after itself. */
const TIDY_MS = 3000;

/**
 * From the first signal to the exit code. Stop steps run once, the last one added first; a second signal ends the
 * process at once, with whatever is still open.
 */
export class Lifecycle {
	readonly #console: Console;
	readonly #abort = new AbortController();
	readonly #steps: StopStep[] = [];
	readonly #lastSteps: (() => void)[] = [];
	#ready = false;
	#stopping = false;
	#exitCode: number | undefined;
	#finish: (code: number) => void = () => {};
	/** Resolves with the exit code once everything has stopped. */
	readonly ended: Promise<number>;

	constructor(console: Console) {
		this.#console = console;
		this.ended = new Promise((resolve) => {
			this.#finish = resolve;
		});
	}

	/** Aborted by the first signal: work that has not led to anything yet can be given up. */
	get signal(): AbortSignal {
		return this.#abort.signal;
	}

	get stopping(): boolean {
		return this.#stopping;
	}

	/** Listens for Ctrl-C and SIGTERM. */
	listen(): void {
		for (const name of ["SIGINT", "SIGTERM"] as const) {
			// As a shell says it: 130 for SIGINT, 143 for SIGTERM.
			const interrupted = 128 + constants.signals[name];
			process.on(name, () => {
				if (this.#stopping) {
					for (const step of this.#lastSteps) step();
					process.exit(interrupted);
				}
				this.stop(this.#ready ? EXIT.ok : interrupted, true);
			});
		}
	}

	/** Adds what must happen before the end. Added after the end began, it runs at once. */
	onStop(step: StopStep): void {
		if (this.#stopping) void this.#run([step]);
		else this.#steps.push(step);
	}

	/** Work that {@link signal} breaks off: the end waits until it has removed its half-made files and locks. */
	breakable<T>(work: Promise<T>): Promise<T> {
		const settled = work.then(
			() => {},
			() => {},
		);
		this.onStop(() => Promise.race([settled, new Promise<void>((resolve) => setTimeout(resolve, TIDY_MS).unref())]));
		return work;
	}

	/** Adds what a second signal still does; it cannot wait for anything. */
	onKill(step: () => void): void {
		this.#lastSteps.push(step);
	}

	/** From now on a signal is the wanted end, exit code 0. */
	markReady(): void {
		this.#ready = true;
	}

	/** Begins the end. The first exit code other than 0 wins. */
	stop(exitCode: number, bySignal = false): void {
		if (this.#exitCode === undefined || this.#exitCode === EXIT.ok) this.#exitCode = exitCode;
		if (this.#stopping) return;
		this.#stopping = true;
		this.#abort.abort();
		if (bySignal && this.#ready && this.#console.interactive) {
			this.#console.note("stopping; requests under way may finish (Ctrl-C again ends at once)");
		}
		void this.#run([...this.#steps].reverse()).then(() => this.#finish(this.#exitCode ?? EXIT.ok));
	}

	async #run(steps: readonly StopStep[]): Promise<void> {
		for (const step of steps) {
			try {
				await step();
			} catch (error) {
				this.#console.note(`while stopping: ${error instanceof Error ? error.message : String(error)}`);
				if (this.#exitCode === EXIT.ok) this.#exitCode = EXIT.failure;
			}
		}
	}
}
