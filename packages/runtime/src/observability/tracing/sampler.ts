// SPDX-License-Identifier: Apache-2.0
// Which traces are recorded: OpenTelemetry's samplers by their names in OTEL_TRACES_SAMPLER.

/** Values of OTEL_TRACES_SAMPLER. */
export const SAMPLERS = [
	"always_on",
	"always_off",
	"traceidratio",
	"parentbased_always_on",
	"parentbased_always_off",
	"parentbased_traceidratio",
] as const;
export type SamplerName = (typeof SAMPLERS)[number];

/** Which traces are recorded. */
export interface SamplingConfig {
	readonly sampler: SamplerName;
	/** Share of traces, 0 to 1; for the samplers by trace id. */
	readonly ratio: number;
}

/**
 * Decides about the trace of a request that came into the process.
 * @param parentSampled what the caller decided; undefined: there is none.
 */
export type Sampler = (traceId: string, parentSampled: boolean | undefined) => boolean;

/** The sampler that the configuration names. */
export function createSampler({ sampler, ratio }: SamplingConfig): Sampler {
	const parentBased = sampler.startsWith("parentbased_");
	const root = rootSampler(sampler, ratio);
	return parentBased ? (traceId, parent) => parent ?? root(traceId) : (traceId) => root(traceId);
}

function rootSampler(sampler: SamplerName, ratio: number): (traceId: string) => boolean {
	if (sampler.endsWith("always_off")) return () => false;
	if (sampler.endsWith("always_on") || ratio >= 1) return () => true;
	// The rule of Dynamo's SDK, so that all processes of a mixed fleet decide alike: 63 bits of the id's lower half.
	const bound = BigInt(Math.floor(ratio * 2 ** 63));
	return (traceId) => BigInt(`0x${traceId.slice(16)}`) >> 1n < bound;
}
