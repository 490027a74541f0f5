// SPDX-License-Identifier: Apache-2.0

export interface StopSequenceOptions {
	/** Send the stop string itself before ending. Default false. */
	includeStopString?: boolean;
}

/** What one push or flush of a StopSequenceMatcher gives. */
export interface StopSequenceResult {
	/** Text that can be sent now. */
	text: string;
	/** The stop string that was met; nothing comes after it. */
	stopped: string | undefined;
}

/** Node of the trie of stop strings. */
interface State {
	/** Length in UTF-16 units of the text that led here: that much could become a stop string. */
	depth: number;
	next: Map<number, State>;
	/** State of the longest proper suffix of this text that begins a stop string. */
	suffix: State;
	/** Longest stop string that ends here. */
	match: string | undefined;
}

/**
 * Finds stop strings in a stream of text pieces (Aho-Corasick over UTF-16 units, so a unit costs the same
 * whatever the number of stop strings).
 *
 * The stop string that ends first wins; of those that end at the same place, the longest. Text is held back
 * only while it could still become a stop string, and not at all with `includeStopString`. Output never
 * breaks a surrogate pair. A half surrogate in a stop string cannot occur in text and is read as U+FFFD.
 */
export class StopSequenceMatcher {
	readonly #root: State | undefined;
	readonly #include: boolean;
	#state: State | undefined;
	/** Text not yet sent; a suffix of what came. */
	#held = "";
	#stopped: string | undefined;

	/** @param stops stop strings; empty ones are ignored */
	constructor(stops: readonly string[], options: StopSequenceOptions = {}) {
		this.#root = buildTrie(stops);
		this.#state = this.#root;
		this.#include = options.includeStopString ?? false;
	}

	/** The stop string that ended the stream. */
	get stopped(): string | undefined {
		return this.#stopped;
	}

	/** Takes the next piece; after a stop string was met, text is ignored and `stopped` stays set. */
	push(piece: string): StopSequenceResult {
		if (this.#stopped !== undefined) return { text: "", stopped: this.#stopped };
		const root = this.#root;
		if (root === undefined) return this.#emit(piece, 0);
		let state = this.#state!;
		for (let i = 0; i < piece.length; i++) {
			const unit = piece.charCodeAt(i);
			let next = state.next.get(unit);
			while (next === undefined && state !== root) {
				state = state.suffix;
				next = state.next.get(unit);
			}
			state = next ?? root;
			if (state.match !== undefined) return this.#stop(piece, i + 1, state.match);
		}
		this.#state = state;
		return this.#emit(piece, this.#include ? 0 : state.depth);
	}

	/** Ends the stream: gives the text that was held back. */
	flush(): StopSequenceResult {
		const text = this.#held;
		this.#held = "";
		this.#state = this.#root;
		return { text, stopped: this.#stopped };
	}

	#emit(piece: string, keep: number): StopSequenceResult {
		const all = this.#held === "" ? piece : this.#held + piece;
		let cut = all.length - keep;
		// A high surrogate waits for its other half.
		if (cut > 0 && (all.charCodeAt(cut - 1) & 0xfc00) === 0xd800) cut--;
		this.#held = cut === all.length ? "" : all.slice(cut);
		return { text: this.#held === "" ? all : all.slice(0, cut), stopped: undefined };
	}

	#stop(piece: string, end: number, match: string): StopSequenceResult {
		const all = this.#held + piece.slice(0, end);
		const text = this.#include ? all : all.slice(0, all.length - match.length);
		this.#held = "";
		this.#stopped = match;
		return { text, stopped: match };
	}
}

function buildTrie(stops: readonly string[]): State | undefined {
	const root = newState(0);
	root.suffix = root;
	for (const raw of stops) {
		const stop = Buffer.from(raw, "utf8").toString("utf8");
		let state = root;
		for (let i = 0; i < stop.length; i++) {
			const unit = stop.charCodeAt(i);
			let next = state.next.get(unit);
			if (next === undefined) {
				next = newState(i + 1);
				state.next.set(unit, next);
			}
			state = next;
		}
		if (state !== root) state.match = stop;
	}
	if (root.next.size === 0) return undefined;
	const queue: State[] = [];
	for (const child of root.next.values()) {
		child.suffix = root;
		queue.push(child);
	}
	for (let head = 0; head < queue.length; head++) {
		const state = queue[head]!;
		for (const [unit, child] of state.next) {
			let suffix = state.suffix;
			while (suffix !== root && !suffix.next.has(unit)) suffix = suffix.suffix;
			child.suffix = suffix.next.get(unit) ?? root;
			// The suffix is nearer the root, so its match is final; it is shorter than a match of the child's own.
			child.match ??= child.suffix.match;
			queue.push(child);
		}
	}
	return root;
}

function newState(depth: number): State {
	return { depth, next: new Map(), suffix: undefined as unknown as State, match: undefined };
}
