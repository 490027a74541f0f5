// SPDX-License-Identifier: Apache-2.0
import type { WireError } from "./dynamo-error.js";

/** The envelope of each item on a response stream. `event: "error"` makes it an error item. */
export interface Annotated<T> {
	data?: T | null;
	id?: string | null;
	event?: string | null;
	comment?: string[] | null;
	error?: WireError | null;
}

/** What a data frame's body encodes: an item, or the one mark that the stream is complete. */
export type ResponseFrame<T> = { data: Annotated<T>; complete_final: false } | { complete_final: true };
