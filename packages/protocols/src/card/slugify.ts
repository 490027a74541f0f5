// SPDX-License-Identifier: Apache-2.0

/**
 * Reduces a name to what may stand in URLs and subjects, as Dynamo does: lowercase, every character that is not
 * `a-z 0-9 - _` becomes `_`, and underscores at the start fall away.
 */
export function slugify(name: string): string {
	return name
		.toLowerCase()
		.replace(/[^a-z0-9_-]/gu, "_")
		.replace(/^_+/, "");
}

/** True for text that can be a slug. Dynamo refuses a card with any other. */
export function isSlug(text: string): boolean {
	return /^[a-z0-9_-]*$/.test(text);
}
