// SPDX-License-Identifier: Apache-2.0

/** Something that gathers output and writes it when told. */
export interface Flushable {
	flush(): void;
}

let waiting: Flushable[] = [];
let spare: Flushable[] = [];

/**
 * Has `target` flushed once at the end of this turn of the event loop, together with everything else that asked. The
 * caller keeps track of whether it has asked already.
 */
export function flushAfterTurn(target: Flushable): void {
	if (waiting.push(target) === 1) setImmediate(flushAll);
}

function flushAll(): void {
	const targets = waiting;
	waiting = spare;
	for (const target of targets) target.flush();
	targets.length = 0;
	spare = targets;
}
