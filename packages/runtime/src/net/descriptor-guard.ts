// SPDX-License-Identifier: Apache-2.0
import { readdirSync, readFileSync, statSync } from "node:fs";
import type { Logger } from "../observability/logging.js";

/** How the guard learns about the process' file descriptors; replaced in tests. */
export interface DescriptorSource {
	/** Most that may be open; undefined: not known. */
	readonly limit: number | undefined;
	/** Open now. */
	open(): number;
}

/** A count this old is good enough; what was claimed since is added to it. Milliseconds. */
const SAMPLE_MS = 10;
/** Left free for what is not a stream: files, probes, the listeners' new connections. */
const RESERVE = 16;
const RESERVE_FRACTION = 0.05;
const WARN_EVERY_MS = 10_000;

/**
 * Refuses streams before the process runs out of file descriptors. Behind that limit nothing works and nobody is told
 * why: connections are dropped by the event loop before any of our code sees them.
 */
export class DescriptorGuard {
	readonly #source: DescriptorSource;
	readonly #log: Logger;
	readonly #most: number;
	#open = 0;
	#claimed = 0;
	#sampledAt = Number.NEGATIVE_INFINITY;
	#warnedAt = Number.NEGATIVE_INFINITY;

	constructor(log: Logger, source: DescriptorSource = PROCESS_DESCRIPTORS) {
		this.#log = log;
		this.#source = source;
		const limit = source.limit ?? Number.POSITIVE_INFINITY;
		this.#most = limit - Math.max(RESERVE, limit === Number.POSITIVE_INFINITY ? 0 : limit * RESERVE_FRACTION);
	}

	/**
	 * Asks for room for one more stream.
	 * @param expected descriptors that will be opened for streams that were let in before.
	 * @returns why there is none; undefined: go on.
	 */
	refusal(expected = 0): string | undefined {
		const now = performance.now();
		if (now - this.#sampledAt > SAMPLE_MS) {
			if (this.#most === Number.POSITIVE_INFINITY) return undefined;
			this.#open = this.#source.open();
			this.#claimed = 0;
			this.#sampledAt = now;
		}
		if (this.#open + Math.max(this.#claimed, expected) < this.#most) {
			this.#claimed++;
			return undefined;
		}
		const text = `too few file descriptors: ${this.#open} of ${this.#source.limit} are open`;
		if (now - this.#warnedAt > WARN_EVERY_MS) {
			this.#warnedAt = now;
			this.#log.warn(`${text}; requests are refused`, { advice: "raise the limit of open files (ulimit -n)" });
		}
		return text;
	}
}

/** This process, where the system tells (Linux). */
const PROCESS_DESCRIPTORS: DescriptorSource = {
	limit: readLimit(),
	open() {
		try {
			// The size is the number of entries since Linux 6.2, and 0 before.
			return statSync("/proc/self/fd").size || readdirSync("/proc/self/fd").length;
		} catch {
			return 0;
		}
	},
};

function readLimit(): number | undefined {
	try {
		const match = /^Max open files\s+(\d+)/m.exec(readFileSync("/proc/self/limits", "utf8"));
		return match === null ? undefined : Number(match[1]);
	} catch {
		return undefined;
	}
}
