// SPDX-License-Identifier: Apache-2.0
// When what is read now arrived: not later than the present turn of the event loop began. Of many requests that arrive
// together the last is looked at when the others have been dealt with, and that wait is part of what its client sees.

let startedAt = 0;

function clear(): void {
	startedAt = 0;
}

/**
 * To be called when something was read from a socket.
 * @returns `performance.now()` of the first such call in this turn of the event loop.
 */
export function readAt(): number {
	if (startedAt === 0) {
		startedAt = performance.now();
		setImmediate(clear);
	}
	return startedAt;
}
