// SPDX-License-Identifier: Apache-2.0

/** Waits until `predicate` holds; for states that no event tells. @throws Error after `timeoutMs` milliseconds. */
export async function eventually(
	predicate: () => boolean | Promise<boolean>,
	what: string,
	timeoutMs = 10_000,
): Promise<void> {
	const end = performance.now() + timeoutMs;
	while (!(await predicate())) {
		if (performance.now() > end) throw new Error(`still waiting for: ${what}`);
		await new Promise((resolve) => setTimeout(resolve, 5));
	}
}
