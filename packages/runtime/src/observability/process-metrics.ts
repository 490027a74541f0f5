// SPDX-License-Identifier: Apache-2.0
// What prom-client tells of a Node process: `process_*` as every exporter has them, and `nodejs_*` (event loop, garbage
// collection, heap), which are to this runtime what Dynamo's `dynamo_tokio_*` are to its own.
import promClient from "prom-client";
import { type FamilyText, familyText } from "./metric-families.js";

/** Gauges whose names say that they are counters, which linters and agents take amiss. */
const MISNAMED = ["nodejs_active_handles_total", "nodejs_active_requests_total", "nodejs_active_resources_total"];
const GC_FAMILY = "nodejs_gc_duration_seconds";

let registry: promClient.Registry | undefined;

/** One for the process: the observers behind it cannot be taken away again. */
function processRegistry(): promClient.Registry {
	if (registry === undefined) {
		registry = new promClient.Registry();
		promClient.collectDefaultMetrics({ register: registry });
		for (const name of MISNAMED) registry.removeSingleMetric(name);
	}
	return registry;
}

/** The families of this process, as they are now. */
export async function readProcessMetrics(): Promise<FamilyText[]> {
	const registry = processRegistry();
	const texts: FamilyText[] = [];
	for (const { name } of registry.getMetricsAsArray()) {
		texts.push({ name, text: await familyText(registry, name) });
	}
	return texts;
}

/** Collections of V8's garbage since the first look at process metrics, by kind. */
export interface GarbageCollections {
	/** Of new objects only. */
	readonly minor: number;
	/** Steps of marking between other work. */
	readonly incremental: number;
	/** Of everything. */
	readonly major: number;
}

export async function readGarbageCollections(): Promise<GarbageCollections> {
	const counts = { minor: 0, incremental: 0, major: 0 };
	const family = await processRegistry().getSingleMetric(GC_FAMILY)?.get();
	for (const { labels, value, ...more } of family?.values ?? []) {
		if ((more as { metricName?: string }).metricName !== `${GC_FAMILY}_count`) continue;
		const { kind } = labels as { kind?: keyof GarbageCollections };
		if (kind !== undefined && kind in counts) counts[kind] += value;
	}
	return counts;
}
