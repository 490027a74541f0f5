// SPDX-License-Identifier: Apache-2.0
// `/dashboard`: a page that shows the cluster as it is now, and the JSON behind it. The cluster is looked at only while
// somebody asks for that JSON.
import { readFileSync } from "node:fs";
import { stringifyJson } from "@dynamo-ts/protocols/internal";
import type { FastifyInstance } from "fastify";
import { sendJson } from "../answers.js";
import { ClusterCollector } from "../cluster/cluster-collector.js";
import type { WorkerState } from "../cluster/cluster-view.js";
import { metricsPrefix } from "../frontend-metrics.js";
import type { FrontendState } from "../frontend-state.js";

/** Collecting ends so long after the last request for the JSON, milliseconds. */
const LEASE_MS = 60_000;

/** The page's parts, beside the sources; nothing is fetched from elsewhere. */
const FILES = {
	"/dashboard": ["index.html", "text/html; charset=utf-8"],
	"/dashboard/app.js": ["app.js", "text/javascript; charset=utf-8"],
	"/dashboard/style.css": ["style.css", "text/css; charset=utf-8"],
	"/dashboard/icon.svg": ["icon.svg", "image/svg+xml"],
} as const;
const DATA = "/dashboard/data";

const HEADERS = {
	"content-security-policy":
		"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
	"x-content-type-options": "nosniff",
	"referrer-policy": "no-referrer",
	"cache-control": "no-cache",
};

/** Whether a path is one of the dashboard's. */
export function isDashboard(path: string): boolean {
	return path === DATA || path in FILES;
}

export function addDashboardRoutes(app: FastifyInstance, state: FrontendState): void {
	for (const [path, [name, type]] of Object.entries(FILES)) {
		let content: Buffer | undefined;
		app.get(path, (_request, reply) => {
			reply.hijack();
			content ??= readFileSync(new URL(`../../dashboard/${name}`, import.meta.url));
			reply.raw.writeHead(200, { ...HEADERS, "content-type": type, "content-length": content.length });
			reply.raw.end(content);
		});
	}
	const watched = new WatchedCluster(state);
	app.get(DATA, async (request, reply) => {
		reply.hijack();
		const since = Number(new URLSearchParams(request.raw.url?.split("?", 2)[1]).get("since"));
		try {
			const collector = await watched.collector();
			const snapshot = collector.snapshot(Number.isFinite(since) ? since : 0);
			sendJson(reply.raw, 200, stringifyJson(snapshot), { "cache-control": "no-store" });
		} catch (error) {
			state.log.warn("the cluster cannot be looked at", { error });
			sendJson(reply.raw, 503, stringifyJson({ error: "the cluster cannot be looked at: discovery does not answer" }));
		}
	});
	app.addHook("onClose", () => watched.close());
}

/** The collector of a frontend: begins with the first question, ends a while after the last. */
class WatchedCluster {
	private readonly state: FrontendState;
	private current: Promise<ClusterCollector> | undefined;
	private timer: NodeJS.Timeout | undefined;
	private closed = false;

	constructor(state: FrontendState) {
		this.state = state;
	}

	/** @throws DynamoError when discovery cannot be used; the next call tries again. */
	collector(): Promise<ClusterCollector> {
		clearTimeout(this.timer);
		this.timer = this.closed ? undefined : setTimeout(() => void this.end(), LEASE_MS).unref();
		this.current ??= this.begin();
		return this.current;
	}

	async close(): Promise<void> {
		this.closed = true;
		clearTimeout(this.timer);
		await this.end();
	}

	private async begin(): Promise<ClusterCollector> {
		const { state } = this;
		const { runtime, watcher } = state;
		const collector = new ClusterCollector({
			runtime,
			metricsPrefix: metricsPrefix(state.config.metricsPrefix, () => {}),
			frontendPage: async () => (await state.metrics.registry.scrape()) + (await runtime.metrics.scrape()),
			ownWorker: { id: runtime.instanceId, page: () => runtime.metrics.scrape() },
			workerStates: () => statesOf(state),
			wants: (record) => watcher.wanted(record),
		});
		try {
			if (this.closed) throw new Error("the frontend is stopping");
			await collector.start();
			return collector;
		} catch (error) {
			this.current = undefined;
			await collector.close();
			throw error;
		}
	}

	private async end(): Promise<void> {
		const { current } = this;
		this.current = undefined;
		await current?.then(
			(collector) => collector.close(),
			() => {},
		);
	}
}

/** What the frontend thinks of each worker that it knows. */
function statesOf({ watcher }: FrontendState): Map<bigint, WorkerState> {
	const states = new Map<bigint, WorkerState>();
	for (const id of watcher.refused()) states.set(id, "refused");
	for (const set of watcher.workerSets()) {
		const usable = new Set(set.candidates().map(({ instance_id }) => instance_id));
		for (const id of set.memberIds()) {
			if (!set.committed) states.set(id, "starting");
			else if (!usable.has(id)) states.set(id, "failing");
			else states.set(id, set.load?.isBusy(id) ? "busy" : "ready");
		}
	}
	return states;
}
