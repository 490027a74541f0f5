// SPDX-License-Identifier: Apache-2.0
import type { Console } from "../console.js";

/** Shows how far a download is. */
export interface Progress {
	/** Begins, with the bytes that are there already and those wanted (undefined: unknown). */
	start(what: string, have: number, total: number | undefined): void;
	/** The bytes that are there now. */
	update(have: number): void;
	/** Ends, complete or not. */
	stop(): void;
}

/** A bar on a terminal, a line per quarter elsewhere (a log should not fill up with bars). */
export async function createProgress(console: Console): Promise<Progress> {
	if (!console.interactive) return new ProgressLines(console);
	const { SingleBar } = (await import("cli-progress")).default;
	let bar: InstanceType<typeof SingleBar> | undefined;
	let startedAt = 0;
	let startedWith = 0;
	let wanted: number | undefined;
	return {
		start(what, have, total) {
			bar?.stop();
			bar = new SingleBar({
				format: `${what} {bar} {percentage}% {have} of {size}, {left} left`,
				barsize: 30,
				hideCursor: true,
				etaBuffer: 100,
				formatBar: (progress, options) => {
					const full = Math.round(progress * (options.barsize ?? 30));
					return "█".repeat(full) + "░".repeat((options.barsize ?? 30) - full);
				},
			});
			bar.start(total ?? have, have, { have: bytesText(have), size: bytesText(total), left: "?" });
			startedAt = Date.now();
			startedWith = have;
			wanted = total;
		},
		update(have) {
			const speed = (have - startedWith) / Math.max(1, Date.now() - startedAt);
			const left = wanted === undefined || speed <= 0 ? "?" : secondsText((wanted - have) / speed / 1000);
			bar?.update(have, { have: bytesText(have), size: bytesText(wanted), left });
		},
		stop() {
			bar?.stop();
			bar = undefined;
		},
	};
}

class ProgressLines implements Progress {
	readonly #console: Console;
	#what = "";
	#total: number | undefined;
	#quarter = 0;

	constructor(console: Console) {
		this.#console = console;
	}

	start(what: string, have: number, total: number | undefined): void {
		this.#what = what;
		this.#total = total;
		this.#quarter = total === undefined || total === 0 ? 0 : Math.floor((have / total) * 4);
		this.#console.note(`${what}: ${have > 0 ? `${bytesText(have)} there already of ` : ""}${bytesText(total)}`);
	}

	update(have: number): void {
		if (this.#total === undefined || this.#total === 0) return;
		const quarter = Math.floor((have / this.#total) * 4);
		if (quarter <= this.#quarter) return;
		this.#quarter = quarter;
		this.#console.note(`${this.#what}: ${quarter * 25}%`);
	}

	stop(): void {}
}

/** "92.3 MB", in units of 1000. */
export function bytesText(bytes: number | undefined): string {
	if (bytes === undefined) return "? MB";
	if (bytes < 1000) return `${bytes} B`;
	if (bytes < 1_000_000) return `${(bytes / 1000).toFixed(1)} kB`;
	if (bytes < 1_000_000_000) return `${(bytes / 1_000_000).toFixed(1)} MB`;
	return `${(bytes / 1_000_000_000).toFixed(2)} GB`;
}

function secondsText(seconds: number): string {
	if (seconds < 60) return `${Math.ceil(seconds)} s`;
	return `${Math.floor(seconds / 60)} min ${Math.ceil(seconds % 60)} s`;
}
