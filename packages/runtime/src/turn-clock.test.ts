// SPDX-License-Identifier: Apache-2.0
import { expect, it } from "vitest";
import { readAt } from "./turn-clock.js";

it("everything that is read in a turn of the event loop arrived when the turn began", async () => {
	const first = readAt();
	while (performance.now() < first + 5);
	expect(readAt()).toBe(first);
	await Promise.resolve();
	expect(readAt()).toBe(first);
	await new Promise((resolve) => setImmediate(resolve));
	expect(readAt()).toBeGreaterThanOrEqual(first + 5);
});
