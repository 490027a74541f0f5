// SPDX-License-Identifier: Apache-2.0
import { DynamoError } from "@dynamo-ts/protocols/internal";
import type { LogLevel } from "./logging.js";

/** Numeric severity: a line is written when its number is at most the filter's; 0 writes nothing. */
export const LEVEL_NUMBER = { off: 0, error: 1, warn: 2, info: 3, debug: 4, trace: 5 } as const;

/** A parsed filter: the level of a target is that of its longest matching prefix. */
export interface LogFilter {
	levelFor(target: string): number;
}

/** Libraries that Dynamo shows errors of only; their targets are in nobody's way when a filter shows everything else. */
const QUIET_TARGETS = [
	...["h2", "tower", "hyper_util", "neli", "async_nats", "rustls", "tokenizers", "axum", "tonic", "hf_hub"],
	...["opentelemetry", "opentelemetry_sdk", "opentelemetry_otlp"],
];

/**
 * Parses `default_level[,target[=level]]...`. A target matches itself and what is below it, with `::` or `.` between
 * the parts; one without a level is shown whole.
 * @throws DynamoError `InvalidArgument` naming the part that is not understood.
 */
export function parseLogFilter(text: string): LogFilter {
	let fallback: number = LEVEL_NUMBER.info;
	const rules = QUIET_TARGETS.map((prefix) => ({ prefix, level: LEVEL_NUMBER.error as number }));
	for (const raw of text.split(",")) {
		const part = raw.trim();
		if (part === "") continue;
		const equals = part.indexOf("=");
		if (equals < 0) {
			const level = levelNumber(part);
			if (level === undefined) rules.push({ prefix: part, level: LEVEL_NUMBER.trace });
			else fallback = level;
			continue;
		}
		const prefix = part.slice(0, equals).trim();
		const level = levelNumber(part.slice(equals + 1).trim());
		if (prefix === "" || level === undefined) {
			throw new DynamoError(
				"InvalidArgument",
				`log filter "${text}": "${part}" is not "target=level" with a level of off, error, warn, info, debug or trace`,
			);
		}
		rules.push({ prefix, level });
	}
	// Of two rules for a target the later one counts.
	rules.reverse();
	rules.sort((a, b) => b.prefix.length - a.prefix.length);
	return {
		levelFor(target) {
			for (const rule of rules) if (isWithin(target, rule.prefix)) return rule.level;
			return fallback;
		},
	};
}

function levelNumber(text: string): number | undefined {
	const name = text.toLowerCase() as LogLevel | "off";
	return Object.hasOwn(LEVEL_NUMBER, name) ? LEVEL_NUMBER[name] : undefined;
}

function isWithin(target: string, prefix: string): boolean {
	if (!target.startsWith(prefix)) return false;
	const next = target.charAt(prefix.length);
	return next === "" || next === ":" || next === ".";
}
