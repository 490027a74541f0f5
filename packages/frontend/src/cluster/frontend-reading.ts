// SPDX-License-Identifier: Apache-2.0
// A frontend's page of metrics at one moment, by model, and what lies between two moments.
import { FRONTEND_LABELS, fullMetricName, LABELS, METRIC_PREFIXES, METRICS } from "@dynamo-ts/protocols/internal";
import type { LatencyView } from "./cluster-view.js";
import { MetricsPage, type Sample } from "./page-reader.js";

/** Counts by upper bound, cumulative, in the order of the bounds. */
interface HistogramReading {
	readonly buckets: ReadonlyMap<number, number>;
	readonly sum: number;
	readonly count: number;
}

export interface ModelReading {
	readonly active: number | null;
	readonly queued: number | null;
	readonly ready: boolean | null;
	readonly requests: number;
	readonly errors: number;
	readonly outputTokens: number;
	readonly inputTokens: number;
	readonly cachedTokens: number;
	readonly timeToFirstToken: HistogramReading;
	readonly interTokenLatency: HistogramReading;
}

export interface FrontendReading {
	/** Milliseconds since 1970. */
	readonly at: number;
	readonly uptimeSeconds: number | null;
	readonly models: ReadonlyMap<string, ModelReading>;
	/** Last time to first token by decimal worker id, seconds. */
	readonly lastTimeToFirstToken: ReadonlyMap<string, number>;
}

/** A frontend counts requests for models that do not exist under this name. */
const UNKNOWN_MODEL = "unknown_model";
const HISTOGRAMS = ["timeToFirstTokenSeconds", "interTokenLatencySeconds"] as const;

/** Reads pages of frontends whose request families have a prefix. */
export class FrontendPageReader {
	private readonly name: (key: keyof typeof METRICS.frontend, suffix?: string) => string;
	private readonly uptime = fullMetricName("component", METRICS.component.uptimeSeconds.name);
	private readonly wanted: ReadonlySet<string>;

	constructor(prefix: string = METRIC_PREFIXES.frontend) {
		this.name = (key, suffix = "") => `${prefix}_${METRICS.frontend[key].name}${suffix}`;
		const { name } = this;
		this.wanted = new Set([
			name("requestsTotal"),
			name("activeRequests"),
			name("queuedRequests"),
			name("outputTokensTotal"),
			name("inputSequenceTokens", "_sum"),
			name("cachedTokens", "_sum"),
			name("modelReady"),
			name("workerLastTimeToFirstTokenSeconds"),
			this.uptime,
			...HISTOGRAMS.flatMap((key) => ["_bucket", "_sum", "_count"].map((suffix) => name(key, suffix))),
		]);
	}

	read(text: string, at: number): FrontendReading {
		const page = new MetricsPage(text, this.wanted);
		const models = new Map<string, ModelReading>();
		const names = new Set(
			[this.name("requestsTotal"), this.name("modelReady"), this.name("activeRequests")].flatMap((name) =>
				page.all(name).map(({ labels }) => labels[LABELS.model] ?? ""),
			),
		);
		names.delete(UNKNOWN_MODEL);
		const byModel = (key: keyof typeof METRICS.frontend, suffix?: string) => group(page.all(this.name(key, suffix)));
		const requests = byModel("requestsTotal");
		const single = (key: keyof typeof METRICS.frontend, suffix?: string) => {
			const groups = byModel(key, suffix);
			return (model: string): number | null => total(groups.get(model));
		};
		const [active, queued] = [single("activeRequests"), single("queuedRequests")];
		const [output, input] = [single("outputTokensTotal"), single("inputSequenceTokens", "_sum")];
		const [cached, ready] = [single("cachedTokens", "_sum"), single("modelReady")];
		const histograms = HISTOGRAMS.map((key) => {
			const [buckets, sum, count] = [byModel(key, "_bucket"), single(key, "_sum"), single(key, "_count")];
			return (model: string): HistogramReading => ({
				buckets: new Map((buckets.get(model) ?? []).map(({ labels, value }) => [bound(labels.le), value])),
				sum: sum(model) ?? 0,
				count: count(model) ?? 0,
			});
		});
		for (const model of names) {
			const all = requests.get(model) ?? [];
			const isReady = ready(model);
			models.set(model, {
				active: active(model),
				queued: queued(model),
				ready: isReady === null ? null : isReady > 0,
				requests: total(all) ?? 0,
				errors: total(all.filter(({ labels }) => labels[FRONTEND_LABELS.status] === "error")) ?? 0,
				outputTokens: output(model) ?? 0,
				inputTokens: input(model) ?? 0,
				cachedTokens: cached(model) ?? 0,
				timeToFirstToken: histograms[0]!(model),
				interTokenLatency: histograms[1]!(model),
			});
		}
		const last = page.all(this.name("workerLastTimeToFirstTokenSeconds"));
		return {
			at,
			uptimeSeconds: page.sum(this.uptime),
			models,
			lastTimeToFirstToken: new Map(last.map(({ labels, value }) => [labels[LABELS.workerId] ?? "", value])),
		};
	}
}

function group(samples: readonly Sample[]): Map<string, Sample[]> {
	const groups = new Map<string, Sample[]>();
	for (const sample of samples) {
		const model = sample.labels[LABELS.model] ?? "";
		const list = groups.get(model);
		if (list === undefined) groups.set(model, [sample]);
		else list.push(sample);
	}
	return groups;
}

function total(samples: readonly Sample[] | undefined): number | null {
	if (samples === undefined || samples.length === 0) return null;
	return samples.reduce((sum, { value }) => sum + value, 0);
}

function bound(text: string | undefined): number {
	return text === undefined || text === "+Inf" ? Number.POSITIVE_INFINITY : Number(text);
}

const NOTHING: LatencyView = { p50: null, p99: null, mean: null };

/** Latency of what was observed between two readings of the same histograms; values of several add up. */
export function latencyBetween(
	pairs: readonly (readonly [HistogramReading | undefined, HistogramReading])[],
): LatencyView {
	const buckets = new Map<number, number>();
	let [sum, count] = [0, 0];
	for (const [before, after] of pairs) {
		// A frontend that started again counts from 0.
		const earlier = before !== undefined && before.count <= after.count ? before : undefined;
		sum += after.sum - (earlier?.sum ?? 0);
		count += after.count - (earlier?.count ?? 0);
		for (const [upper, value] of after.buckets) {
			buckets.set(upper, (buckets.get(upper) ?? 0) + value - (earlier?.buckets.get(upper) ?? 0));
		}
	}
	if (count <= 0) return NOTHING;
	const bounds = [...buckets.keys()].sort((a, b) => a - b);
	const quantile = (q: number): number | null => {
		const rank = q * count;
		let [below, lower] = [0, 0];
		for (const upper of bounds) {
			const upTo = buckets.get(upper) as number;
			if (upTo >= rank) {
				// In the last bucket nothing more is known than its lower bound.
				if (upper === Number.POSITIVE_INFINITY) return lower;
				return upTo === below ? upper : lower + (upper - lower) * ((rank - below) / (upTo - below));
			}
			[below, lower] = [upTo, upper];
		}
		return null;
	};
	return { p50: quantile(0.5), p99: quantile(0.99), mean: sum / count };
}
