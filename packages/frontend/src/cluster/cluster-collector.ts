// SPDX-License-Identifier: Apache-2.0
// Looks at a cluster once a second: discovery says who is there, a frontend's metrics how requests fare, workers' metrics
// or events how full they are. Serves the frontend's dashboard and `dynamo top`; runs only while somebody looks.
import type { EndpointRecord, ModelRecord } from "@dynamo-ts/protocols/internal";
import type { DiscoveryEvent, DistributedRuntime, Watch } from "@dynamo-ts/runtime";
import type { ClusterSnapshot, HistoryPoint, WorkerState } from "./cluster-view.js";
import type { FrontendReading } from "./frontend-reading.js";
import { FrontendPageReader, latencyBetween } from "./frontend-reading.js";
import { LoadListener } from "./load-listener.js";
import { type KnownWorker, viewOfModels, viewOfWorkers } from "./views.js";
import { metricsUrlOf, readPage, readWorker, type WorkerReading } from "./worker-pages.js";

/** Time between two looks, and the time over which rates are taken, milliseconds. */
const SAMPLE_MS = 1000;
const WINDOW_MS = 10_000;
/** A worker that left is still shown so long, milliseconds. */
const GONE_MS = 60_000;
/** Seconds of history. */
const HISTORY_POINTS = 300;
/** Most workers whose pages are read, and at a time. */
const MAX_PAGES = 1024;
const PAGES_AT_ONCE = 32;

/** Stands for the address of the page of this process' own worker. */
const OWN_PAGE = "own";

/** Where a collector looks. */
export interface ClusterSources {
	readonly runtime: DistributedRuntime;
	/** The frontend's page of metrics; undefined: it cannot be had now. Absent: there is no frontend. */
	readonly frontendPage?: (signal: AbortSignal) => Promise<string | undefined>;
	/** What stands for `dynamo_frontend` in its names. */
	readonly metricsPrefix?: string;
	/** A worker within this process, and its page. */
	readonly ownWorker?: { readonly id: bigint; readonly page: () => Promise<string> };
	/** What a frontend knows of its workers: ids in other states than ready. */
	readonly workerStates?: () => ReadonlyMap<bigint, WorkerState>;
	/** Models that are not wanted are not shown. */
	readonly wants?: (record: ModelRecord) => boolean;
}

/** One look. */
interface Sample {
	readonly at: number;
	readonly frontend: FrontendReading | undefined;
	/** By the address of the page; undefined: it did not answer. */
	readonly pages: ReadonlyMap<string, WorkerReading | undefined>;
}

export class ClusterCollector {
	private readonly sources: ClusterSources;
	private readonly reader: FrontendPageReader;
	private readonly listener: LoadListener;
	private readonly abort = new AbortController();
	private readonly watches: Watch[] = [];
	private readonly models = new Map<string, ModelRecord>();
	private readonly endpoints = new Map<string, EndpointRecord>();
	private readonly gone = new Map<string, { readonly record: ModelRecord; readonly at: number }>();
	/** Those of the last {@link WINDOW_MS}, the latest last. */
	private samples: Sample[] = [];
	private readonly history: HistoryPoint[] = [];
	private running: Promise<void> | undefined;
	private wake: (() => void) | undefined;

	constructor(sources: ClusterSources) {
		this.sources = sources;
		this.reader = new FrontendPageReader(sources.metricsPrefix);
		this.listener = new LoadListener(sources.runtime);
	}

	/**
	 * Begins to look; resolves after the first look.
	 * @throws DynamoError `Unavailable` when discovery cannot be used.
	 */
	async start(): Promise<void> {
		const { discovery } = this.sources.runtime;
		this.watches.push(await discovery.watch("v1/instances", (event) => this.onEndpoint(event)));
		this.watches.push(await discovery.watch("v1/mdc", (event) => this.onModel(event)));
		if (this.abort.signal.aborted) return this.close();
		await this.look();
		this.running = this.run();
	}

	/** Ends it. Idempotent. */
	async close(): Promise<void> {
		this.abort.abort();
		this.wake?.();
		for (const watch of this.watches.splice(0)) watch.close();
		await this.running;
		await this.listener.close();
	}

	/** What is known now; rates need a second look. @param since only history after this time, milliseconds. */
	snapshot(since = 0): ClusterSnapshot {
		const first = this.samples[0];
		const last = this.samples.at(-1);
		const now = Date.now();
		for (const [key, { at }] of this.gone) if (now - at > GONE_MS) this.gone.delete(key);
		const workers = viewOfWorkers(this.known(), {
			states: this.sources.workerStates?.() ?? new Map(),
			loads: this.listener.read(),
			page: (url) => this.pageOf(url),
			lastTimeToFirstToken: last?.frontend?.lastTimeToFirstToken ?? new Map(),
			now,
		});
		return {
			version: 1,
			at: now,
			windowSeconds: first === undefined || last === undefined ? 0 : (last.at - first.at) / 1000,
			hasFrontend: last?.frontend !== undefined,
			uptimeSeconds: last?.frontend?.uptimeSeconds ?? null,
			models: viewOfModels([...this.models.values()], workers, this.frontendWindow()),
			workers,
			history: this.history.filter(({ at }) => at > since),
		};
	}

	private known(): KnownWorker[] {
		const shared = new Map<string, number>();
		const urls = new Map<string, string | undefined>();
		for (const [key, { card_json }] of this.models) {
			const url = metricsUrlOf(card_json);
			urls.set(key, url);
			if (url !== undefined) shared.set(url, (shared.get(url) ?? 0) + 1);
		}
		const endpoints = new Map<string, EndpointRecord>();
		for (const record of this.endpoints.values()) endpoints.set(placeOf(record), record);
		const workers: KnownWorker[] = [...this.models].map(([key, record]) => {
			const url = urls.get(key);
			const own = record.instance_id === this.sources.ownWorker?.id;
			// Of several workers in one process the page has the sum.
			const metricsUrl = url !== undefined && shared.get(url) === 1 ? url : undefined;
			const endpoint = endpoints.get(placeOf(record));
			return { record, endpoint, metricsUrl, page: own ? OWN_PAGE : metricsUrl, goneAt: undefined };
		});
		for (const { record, at } of this.gone.values()) {
			workers.push({ record, endpoint: undefined, metricsUrl: undefined, page: undefined, goneAt: at });
		}
		return workers;
	}

	/** First and last reading of a page within the window; undefined: it did not answer the last time. */
	private pageOf(url: string): { first: WorkerReading; last: WorkerReading } | undefined {
		const last = this.samples.at(-1)?.pages.get(url);
		if (last === undefined) return undefined;
		const first = this.samples.find(({ pages }) => pages.get(url) !== undefined)?.pages.get(url);
		return { first: first ?? last, last };
	}

	private frontendWindow(): { first: FrontendReading; last: FrontendReading } | undefined {
		const last = this.samples.at(-1)?.frontend;
		if (last === undefined) return undefined;
		return { first: this.samples.find(({ frontend }) => frontend !== undefined)?.frontend ?? last, last };
	}

	private async run(): Promise<void> {
		while (!this.abort.signal.aborted) {
			await new Promise<void>((resolve) => {
				const timer = setTimeout(resolve, SAMPLE_MS);
				this.wake = () => {
					clearTimeout(timer);
					resolve();
				};
			});
			if (!this.abort.signal.aborted) await this.look();
		}
	}

	private async look(): Promise<void> {
		const workers = this.known();
		const urls: string[] = [];
		for (const { record, page, goneAt } of workers) {
			if (page !== undefined && urls.length < MAX_PAGES) urls.push(page);
			else if (goneAt === undefined) {
				const { namespace, component, endpoint } = record;
				this.listener.listen({ namespace, component, name: endpoint });
			}
		}
		const at = Date.now();
		const [text, pages] = await Promise.all([
			this.sources.frontendPage?.(this.abort.signal).catch(() => undefined),
			this.readPages(urls),
		]);
		if (this.abort.signal.aborted) return;
		const frontend = text === undefined ? undefined : this.reader.read(text, at);
		this.remember(this.samples.at(-1), { at, frontend, pages });
	}

	private async readPages(urls: readonly string[]): Promise<Map<string, WorkerReading | undefined>> {
		const pages = new Map<string, WorkerReading | undefined>();
		let next = 0;
		const lane = async (): Promise<void> => {
			while (next < urls.length) {
				const url = urls[next++] as string;
				const text = url === OWN_PAGE ? await this.sources.ownWorker?.page() : await readPage(url, this.abort.signal);
				pages.set(url, text === undefined ? undefined : readWorker(text));
			}
		};
		await Promise.all(Array.from({ length: Math.min(PAGES_AT_ONCE, urls.length) }, lane));
		return pages;
	}

	private remember(before: Sample | undefined, sample: Sample): void {
		this.samples = [...this.samples.filter(({ at }) => sample.at - at <= WINDOW_MS), sample];
		const { frontend } = sample;
		if (frontend === undefined) return;
		const earlier = before?.frontend;
		const seconds = earlier === undefined ? 0 : (frontend.at - earlier.at) / 1000;
		const rate = (key: "requests" | "outputTokens"): number | null => {
			if (earlier === undefined || seconds <= 0) return null;
			let grown = 0;
			for (const [name, model] of frontend.models)
				grown += Math.max(0, model[key] - (earlier.models.get(name)?.[key] ?? 0));
			return grown / seconds;
		};
		const total = (key: "active" | "queued"): number =>
			[...frontend.models.values()].reduce((sum, model) => sum + (model[key] ?? 0), 0);
		const pairs = [...frontend.models].map(
			([name, model]) => [earlier?.models.get(name)?.timeToFirstToken, model.timeToFirstToken] as const,
		);
		this.history.push({
			at: frontend.at,
			requestsPerSecond: rate("requests"),
			outputTokensPerSecond: rate("outputTokens"),
			active: total("active"),
			queued: total("queued"),
			timeToFirstToken: earlier === undefined ? null : latencyBetween(pairs).p50,
		});
		if (this.history.length > HISTORY_POINTS) this.history.shift();
	}

	private onEndpoint(event: DiscoveryEvent): void {
		if (event.type === "delete") this.endpoints.delete(event.key);
		else if (event.record.type === "Endpoint") this.endpoints.set(event.key, event.record);
	}

	private onModel(event: DiscoveryEvent): void {
		if (event.type === "delete") {
			const record = this.models.get(event.key);
			this.models.delete(event.key);
			if (record !== undefined) this.gone.set(event.key, { record, at: Date.now() });
		} else if (event.record.type === "Model" && this.sources.wants?.(event.record) !== false) {
			this.models.set(event.key, event.record);
			this.gone.delete(event.key);
		}
	}
}

/** Names an instance of an endpoint. */
function placeOf(record: Pick<EndpointRecord, "namespace" | "component" | "endpoint" | "instance_id">): string {
	return `${record.namespace}/${record.component}/${record.endpoint}/${record.instance_id}`;
}
