// SPDX-License-Identifier: Apache-2.0
import { slugify } from "@dynamo-ts/protocols/internal";

/** Queue group of everything that serves requests over NATS. */
export const QUEUE_GROUP = "q";

/**
 * The subject that an endpoint's instance listens on, `{service}.{endpoint}-{id:x}` with the slug of
 * `{namespace}_{component}` as service, for its path `{id:x}/{namespace}/{component}/{endpoint}`.
 */
export function natsSubject(path: string): string {
	const [id, namespace, component, endpoint] = path.split("/");
	return `${slugify(`${namespace}_${component}`)}.${endpoint}-${id}`;
}

/** True for a text that can be published to: no spaces, no wildcards, no empty part. */
export function isNatsSubject(text: string): boolean {
	return text.length <= 1024 && /^[^\s.*>]+(\.[^\s.*>]+)*$/.test(text);
}
