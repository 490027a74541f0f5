// SPDX-License-Identifier: Apache-2.0
// What a leak probe counts, and how it says so.

/** Begins the probe's line. */
export const PROBE_MARK = "@@leak-probe ";

/**
 * Classes of which one object exists per request, stream or connection: any map, set, timer or listener that was not
 * tidied up holds one of them. File below packages/, then names.
 */
export const LIVE_CLASSES: readonly (readonly [string, ...string[]])[] = [
	["runtime/dist/request-plane/tcp-active-request.js", "TcpActiveRequest"],
	["runtime/dist/request-plane/tcp-response-writer.js", "TcpResponseWriter"],
	["runtime/dist/request-plane/ingress-request.js", "CancellableRequest"],
	["frontend/dist/dispatch.js", "Dispatch"],
	["frontend/dist/generation.js", "Generation"],
	["frontend/dist/leg.js", "Leg"],
	["frontend/dist/text-passthrough.js", "TextPassthrough"],
	["frontend/dist/choice-state.js", "ChoiceState"],
	["frontend/dist/migration.js", "Continuation"],
	["frontend/dist/token-log.js", "TokenLog"],
	["frontend/dist/request-tracker.js", "RequestTracker"],
	["frontend/dist/sse.js", "SseWriter"],
];

/** What a process holds. */
export interface ProbeReport {
	/** Timers, sockets, listeners, ... by the name that node gives them. */
	readonly resources: Readonly<Record<string, number>>;
	/** Objects of {@link LIVE_CLASSES} that something still refers to, by class. */
	readonly live: Readonly<Record<string, number>>;
}
