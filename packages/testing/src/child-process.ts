// SPDX-License-Identifier: Apache-2.0
import { type ChildProcess, spawn } from "node:child_process";

export interface ChildOptions {
	/** Added to the environment of this process; undefined removes a variable. */
	env?: Record<string, string | undefined>;
	cwd?: string;
}

export interface ChildExit {
	/** Exit code, null when a signal ended it. */
	code: number | null;
	signal: NodeJS.Signals | null;
}

const OUTPUT_LIMIT = 4 << 20;

/** A process under test: its output is kept, and what it prints or its end can be awaited. */
export class Child {
	readonly process: ChildProcess;
	readonly exited: Promise<ChildExit>;
	/** stdout and stderr in the order in which they came, at most the last 4 MiB. */
	output = "";
	stdout = "";
	stderr = "";
	#ended: ChildExit | undefined;
	readonly #listeners = new Set<() => void>();

	constructor(command: string, args: readonly string[], options: ChildOptions = {}) {
		const env: NodeJS.ProcessEnv = { ...process.env, ...options.env };
		for (const [name, value] of Object.entries(env)) if (value === undefined) delete env[name];
		this.process = spawn(command, args, { cwd: options.cwd, env, stdio: ["ignore", "pipe", "pipe"] });
		this.process.stdout?.setEncoding("utf8").on("data", (text: string) => this.#take("stdout", text));
		this.process.stderr?.setEncoding("utf8").on("data", (text: string) => this.#take("stderr", text));
		this.exited = new Promise((resolve) => {
			this.process.once("error", (error) => {
				this.#take("stderr", `${error.message}\n`);
				this.#ended ??= { code: -1, signal: null };
				resolve(this.#ended);
			});
			this.process.once("close", (code, signal) => {
				this.#ended = { code, signal };
				this.#notify();
				resolve(this.#ended);
			});
		});
	}

	get pid(): number {
		return this.process.pid ?? -1;
	}

	/** How it ended; undefined while it runs. */
	get ended(): ChildExit | undefined {
		return this.#ended;
	}

	#take(stream: "stdout" | "stderr", text: string): void {
		this[stream] = (this[stream] + text).slice(-OUTPUT_LIMIT);
		this.output = (this.output + text).slice(-OUTPUT_LIMIT);
		this.#notify();
	}

	#notify(): void {
		for (const listener of this.#listeners) listener();
	}

	/**
	 * Resolves with the match once the output contains `pattern`.
	 * @throws Error with the output so far when the process ends first or `timeoutMs` passes.
	 */
	waitForOutput(pattern: RegExp, timeoutMs = 30_000): Promise<RegExpMatchArray> {
		return new Promise((resolve, reject) => {
			const finish = (settle: () => void) => {
				clearTimeout(timer);
				this.#listeners.delete(check);
				settle();
			};
			const fail = (why: string) =>
				finish(() => reject(new Error(`${why} while waiting for ${pattern}; output:\n${this.output.slice(-4000)}`)));
			const check = () => {
				const match = this.output.match(pattern);
				if (match) finish(() => resolve(match));
				else if (this.#ended) fail(`process ended with ${this.#ended.code ?? this.#ended.signal}`);
			};
			const timer = setTimeout(() => fail(`${timeoutMs} ms passed`), timeoutMs);
			this.#listeners.add(check);
			check();
		});
	}

	kill(signal: NodeJS.Signals = "SIGTERM"): void {
		if (!this.#ended) this.process.kill(signal);
	}

	/** Asks it to end, insists after `graceMs`, and returns how it ended. */
	async stop(graceMs = 10_000): Promise<ChildExit> {
		this.kill("SIGTERM");
		const timer = setTimeout(() => this.kill("SIGKILL"), graceMs);
		try {
			return await this.exited;
		} finally {
			clearTimeout(timer);
		}
	}
}

/**
 * Polls `probe` until it answers true, every 20 ms at last; for states that no event tells.
 * @throws Error naming `what` when `child` ends or `timeoutMs` passes first.
 */
export async function until(
	what: string,
	probe: () => Promise<boolean> | boolean,
	options: { timeoutMs?: number; child?: Child } = {},
): Promise<void> {
	const deadline = Date.now() + (options.timeoutMs ?? 30_000);
	for (let pauseMs = 2; ; pauseMs = Math.min(2 * pauseMs, 20)) {
		if (await probe()) return;
		const tail = options.child ? `; output:\n${options.child.output.slice(-4000)}` : "";
		if (options.child?.ended) throw new Error(`process ended before: ${what}${tail}`);
		if (Date.now() > deadline) throw new Error(`timed out waiting for: ${what}${tail}`);
		await new Promise((resolve) => setTimeout(resolve, pauseMs));
	}
}
