// SPDX-License-Identifier: Apache-2.0
// What tests need from outside the project, and how they say that it is not there.

/** Something that may be missing here: `path` says where it is, or `missing` says why it is not. The other is empty. */
export interface Found {
	readonly path: string;
	readonly missing: string;
}

/** A test's title, with the reason why it is skipped. @param missing empty: it is not. */
export function titled(text: string, missing: string): string {
	return missing ? `${text} [skipped: ${missing}]` : text;
}
