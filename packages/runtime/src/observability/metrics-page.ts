// SPDX-License-Identifier: Apache-2.0
// A page of metrics: its families and the callbacks that are asked at each scrape.
import { type FamilySnapshot, FamilyTable, type FamilyText, renderSnapshot } from "./metric-families.js";

/** Longest wait for callbacks of one scrape, milliseconds; well below the 10 s that Prometheus waits. */
const CALLBACK_TIMEOUT_MS = 1000;

/** What a callback gives, now or later. */
export type Eventually<T> = T | Promise<T>;

interface Callback<T> {
	readonly call: () => Eventually<T>;
	/** It was asked by an earlier scrape and has not answered yet. */
	pending: boolean;
}

export class MetricsPage {
	readonly families = new FamilyTable();
	readonly #update: Callback<void>[] = [];
	readonly #exposition: Callback<string>[] = [];
	readonly #typed: Callback<readonly FamilySnapshot[]>[] = [];
	/** Families that others write. */
	readonly #sources: (() => Promise<readonly FamilyText[]>)[] = [];
	readonly #onError: (error: unknown) => void;
	readonly #timeoutMs: number;

	/** @param onError told of callbacks that throw or are late. */
	constructor(onError: (error: unknown) => void, timeoutMs: number = CALLBACK_TIMEOUT_MS) {
		this.#onError = onError;
		this.#timeoutMs = timeoutMs;
	}

	addUpdate(call: () => Eventually<void>): void {
		this.#update.push({ call, pending: false });
	}

	addExposition(call: () => Eventually<string>): void {
		this.#exposition.push({ call, pending: false });
	}

	addTyped(call: () => Eventually<readonly FamilySnapshot[]>): void {
		this.#typed.push({ call, pending: false });
	}

	addSource(source: () => Promise<readonly FamilyText[]>): void {
		this.#sources.push(source);
	}

	/** Families as text, and what goes behind all families as it is. */
	async read(): Promise<{ readonly families: FamilyText[]; readonly appended: string[] }> {
		const [typed, parts] = await this.#ask(true);
		const families = await this.families.render();
		for (const source of this.#sources) families.push(...(await source()));
		const names = new Set(families.map(({ name }) => name));
		for (const snapshot of typed) {
			// A family that is on the page already would be there twice, which makes the page unreadable.
			if (names.has(snapshot.name) || snapshot.series.length === 0) continue;
			names.add(snapshot.name);
			families.push({ name: snapshot.name, text: await renderSnapshot(snapshot) });
		}
		const appended = parts.filter((part) => part !== "").map((part) => (part.endsWith("\n") ? part : `${part}\n`));
		return { families, appended };
	}

	/** The page as data; texts of exposition callbacks are left out. */
	async collect(): Promise<FamilySnapshot[]> {
		const [typed] = await this.#ask(false);
		return [...this.families.snapshot(), ...typed];
	}

	/** Asks all callbacks at once, so that a late one costs the page no more than its own part. */
	async #ask(texts: boolean): Promise<[FamilySnapshot[], string[]]> {
		const signal = new Deadline(this.#timeoutMs);
		try {
			const updates = this.#update.map((callback) => this.#run(callback, signal));
			const typed = this.#typed.map((callback) => this.#run(callback, signal));
			const parts = texts ? this.#exposition.map((callback) => this.#run(callback, signal)) : [];
			await Promise.all(updates);
			const families = (await Promise.all(typed)).flatMap((some) => some ?? []);
			return [families, (await Promise.all(parts)).filter((part) => part !== undefined)];
		} finally {
			signal.end();
		}
	}

	/** @returns undefined when it threw, is late, or is still at an earlier scrape. */
	async #run<T>(callback: Callback<T>, deadline: Deadline): Promise<T | undefined> {
		if (callback.pending) return undefined;
		try {
			const result = callback.call();
			if (!(result instanceof Promise)) return result;
			callback.pending = true;
			const done = () => {
				callback.pending = false;
			};
			result.then(done, done);
			return await deadline.limit(result);
		} catch (error) {
			this.#onError(error);
			return undefined;
		}
	}
}

/** One timer for all callbacks of a scrape; made when the first of them does not answer at once. */
class Deadline {
	readonly #ms: number;
	#timer: NodeJS.Timeout | undefined;
	#late: Promise<never> | undefined;

	constructor(ms: number) {
		this.#ms = ms;
	}

	limit<T>(result: Promise<T>): Promise<T> {
		this.#late ??= new Promise((_, reject) => {
			this.#timer = setTimeout(
				() => reject(new Error(`a metrics callback did not answer within ${this.#ms} ms`)),
				this.#ms,
			);
		});
		return Promise.race([result, this.#late]);
	}

	end(): void {
		clearTimeout(this.#timer);
	}
}

/**
 * The text of one page made of several, families by name.
 * @param last families whose names start so come behind all others.
 */
export async function renderPages(pages: readonly MetricsPage[], last?: string): Promise<string> {
	const read = await Promise.all(pages.map((page) => page.read()));
	const isLast = ({ name }: FamilyText) => last !== undefined && name.startsWith(last);
	const families = read.flatMap(({ families }) => families);
	families.sort((a, b) => Number(isLast(a)) - Number(isLast(b)) || (a.name < b.name ? -1 : 1));
	return families.map(({ text }) => text).join("") + read.flatMap(({ appended }) => appended).join("");
}
