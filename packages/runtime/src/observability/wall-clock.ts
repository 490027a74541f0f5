// SPDX-License-Identifier: Apache-2.0

/** More than `Date.now()` rounds away, so the system clock was set (or the machine slept). */
const RESYNC_MS = 2;

let offset = Date.now() - performance.now();

/**
 * Milliseconds since 1970 with a fraction: the monotonic clock, set by the system clock whenever the two disagree.
 * `Date.now()` alone knows no microseconds, `performance.timeOrigin` does not follow a clock that is set.
 */
export function wallClockMs(): number {
	const now = offset + performance.now();
	const clock = Date.now();
	if (Math.abs(clock - now) <= RESYNC_MS) return now;
	offset = clock - performance.now();
	return clock;
}
