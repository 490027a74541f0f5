// SPDX-License-Identifier: Apache-2.0

/** Something that gathers output during a turn of the event loop. */
export interface Flushable {
	flush(): void;
}

let waiting: Flushable[] = [];
let spare: Flushable[] = [];

/** Has `target` flushed once when this turn's I/O has been handled. A target must not ask twice in between. */
export function flushAfterTurn(target: Flushable): void {
	if (waiting.push(target) === 1) setImmediate(flushAll);
}

function flushAll(): void {
	const targets = waiting;
	waiting = spare;
	for (let i = 0; i < targets.length; i++) (targets[i] as Flushable).flush();
	targets.length = 0;
	spare = targets;
}
