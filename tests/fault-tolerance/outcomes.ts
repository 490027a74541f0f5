// SPDX-License-Identifier: Apache-2.0
// What can become of a request, each brought about with a frontend and simulated workers that are slow enough to be met in
// every phase; and a look at all gauges while it is under way.
import { join } from "node:path";
import {
	Child,
	type Fleet,
	freePort,
	GaugeWatch,
	type HttpAnswer,
	type HttpChild,
	http,
	inflightOf,
	openStream,
	PROJECT_ROOT,
	type SseStream,
	scrape,
	until,
	type WorkerChild,
} from "@dynamo-ts/testing/internal";
import { expect } from "vitest";

export const MODEL = "mock";
export const FAILING = "failing";
/** One sequence at a time, and a prefill of many steps. */
export const SLOW_MOCKER = [
	...["--max-num-seqs", "1", "--max-num-batched-tokens", "64", "--speedup-ratio", "0.2"],
	...["--block-size", "16", "--max-model-len", "4096"],
];
/** Two requests in an engine and one before it; the next are refused. */
export const WORKER_LIMITS = { DYN_ENGINE_REQUEST_LIMIT: "2", DYN_DYNAMO_REQUEST_QUEUE_LIMIT: "1" };

export const chat = (content: string, more: object = {}) => ({
	model: MODEL,
	messages: [{ role: "user", content }],
	max_tokens: 1000,
	ignore_eos: true,
	...more,
});
/** Gauges that are up for less than a moment, or never with these workers and routers. */
export const SELDOM: readonly string[] = [
	// There are ten thousand places.
	"dynamo_work_handler_queue_depth",
	// Of workers with real engines.
	"dynamo_component_kv_transfer_held_blocks",
	// Prompts that wait are new to every cache.
	"dynamo_frontend_router_queue_pending_cached_tokens",
	// Changes that are made at once.
	"dynamo_component_router_active_sequence_ingress_queue_depth",
	"dynamo_component_router_approximate_lru_mutation_queue_depth",
];
/** Gauges that are never up where the router holds nothing back. */
export const ROUTER_QUEUE_GAUGES: readonly string[] = [
	"dynamo_frontend_router_queue_pending_isl_tokens",
	"dynamo_frontend_router_queue_pending_requests",
];
let prompts = 0;
/** A prompt that no cache knows: 200 words take some steps, 2000 many. */
export const longPrompt = (words = 2000): string => `${prompts++} ${"word ".repeat(words)}`;

/** Frontends and workers, and what is watched of them. */
export class Scene {
	readonly watch = new GaugeWatch();
	frontend!: HttpChild;
	readonly #frontends = new Map<string, HttpChild>();

	constructor(readonly fleet: Fleet) {}

	async addFrontend(name: string, args: readonly string[], models: readonly string[]): Promise<void> {
		this.#frontends.set(name, await this.fleet.frontend(models, args));
	}

	/** From now on requests go to this frontend, and it is watched. */
	use(name: string): void {
		const frontend = this.#frontends.get(name);
		if (frontend === undefined) throw new Error(`there is no frontend ${name}`);
		this.frontend = frontend;
		this.watch.processes.push({ name, child: frontend.child, url: frontend.url });
	}

	/** No more of what {@link use} began. What workers lost meanwhile had told others is known there until they leave discovery. */
	leave(): void {
		const { processes } = this.watch;
		processes.splice(
			processes.findIndex(({ child }) => child === this.frontend.child),
			1,
		);
	}

	addWorker(name: string, worker: WorkerChild): WorkerChild {
		this.watch.processes.push({ name, child: worker.child, url: worker.system });
		return worker;
	}

	/** A worker that fails each request; served as {@link FAILING}. */
	async addFailing(modelPath: string): Promise<void> {
		const port = await freePort();
		const file = join(PROJECT_ROOT, "tests", "fault-tolerance", "failing-worker.ts");
		const child = new Child(process.execPath, ["--import", "tsx", file, modelPath, FAILING], {
			cwd: PROJECT_ROOT,
			env: { ...this.fleet.env, DYN_SYSTEM_PORT: String(port) },
		});
		this.fleet.children.push(child);
		await child.waitForOutput(/^serving /m);
		this.addWorker("failing worker", { child, system: `http://127.0.0.1:${port}` });
	}

	async ask(body: unknown, path = "chat/completions", signal?: AbortSignal): Promise<HttpAnswer> {
		return await http(`${this.frontend.url}/v1/${path}`, { body, ...(signal === undefined ? {} : { signal }) });
	}

	/** Opens a stream of which some has come. Its prompt is long enough that another worker is chosen for the next one. */
	async stream(more: object = {}, expectError: "either" | boolean = false): Promise<SseStream> {
		const stream = await openStream(
			`${this.frontend.url}/v1/chat/completions`,
			chat(longPrompt(200), { stream: true, ...more }),
			{
				kind: "chat",
				expectError,
				allowReplacementCharacter: true,
			},
		);
		await stream.events(3);
		await this.watch.look();
		return stream;
	}

	/** Sends a request, and leaves when `reached`. */
	async leaveWhen(reached: () => Promise<boolean>, body: unknown): Promise<void> {
		const leave = new AbortController();
		const answer = this.ask(body, undefined, leave.signal);
		answer.catch(() => {});
		try {
			await until("the request is where it is left", reached, { timeoutMs: 10_000 });
		} catch (error) {
			throw new Error(`${error}; up: ${(await this.watch.look()).join(", ")}`);
		}
		await this.watch.look();
		leave.abort();
	}

	/** The one of `workers` that has work. */
	async busy(workers: readonly WorkerChild[]): Promise<WorkerChild> {
		let found: WorkerChild | undefined;
		await until("a worker has work", async () => {
			for (const worker of workers) if ((await inflightOf(worker)) > 0) found = worker;
			return found !== undefined;
		});
		return found as WorkerChild;
	}
}

/** Sum of a family over the pages of several workers. */
export async function sumOver(workers: readonly WorkerChild[], family: string): Promise<number> {
	const pages = await Promise.all(workers.map(({ system }) => scrape(system)));
	return pages.reduce((sum, page) => sum + page.sum(family), 0);
}
export const RUNNING = "dynamo_component_engine_running_requests";
/** Requests that wait before an engine that has its fill, and those in the router. */
export const ENGINE_QUEUE = "dynamo_request_queue";
export const ROUTER_QUEUE = "dynamo_frontend_router_queue_pending_requests";
export const WAITING = "dynamo_component_engine_waiting_requests";

export async function kill({ child }: WorkerChild): Promise<void> {
	child.kill("SIGKILL");
	await child.exited;
}

/**
 * More requests than there is room for: some are answered, some refused, and every third client leaves.
 * @param gauge of where they are to wait; the clients leave once it is up.
 */
export async function crowd(scene: Scene, gauge: string): Promise<void> {
	const leave = new AbortController();
	const asked = Array.from({ length: 12 }, (_, i) =>
		scene.ask(
			chat(longPrompt(300), { max_tokens: 10, stream: i % 2 === 0 }),
			undefined,
			i % 3 === 0 ? leave.signal : undefined,
		),
	);
	const ends = Promise.allSettled(asked);
	await until(`${gauge} is up`, async () => (await scene.watch.look()).some((up) => up.includes(`: ${gauge}`)));
	leave.abort();
	for (const [i, outcome] of (await ends).entries()) {
		if (outcome.status === "fulfilled") expect([200, 529]).toContain(outcome.value.status);
		else expect(i % 3, String(outcome.reason)).toBe(0);
	}
}

/** Requests that come to nothing before any worker has them, and those that a worker refuses. */
export async function refused(scene: Scene): Promise<void> {
	const { frontend } = scene;
	const broken = await fetch(`${frontend.url}/v1/chat/completions`, {
		method: "POST",
		headers: { "content-type": "application/json" },
		body: '{"model":',
	});
	await broken.text();
	expect(broken.status).toBe(400);
	for (const stream of [false, true]) {
		expect((await scene.ask(chat("Hi", { stream, temperature: 9 }))).status).toBe(400);
		expect((await scene.ask(chat("Hi", { stream, model: "nope" }))).status).toBe(404);
		expect((await scene.ask(chat("word ".repeat(5000), { stream }))).status).toBe(400);
		// Only the worker knows that there is no such token.
		const answer = await scene.ask({ model: MODEL, prompt: [99_999_999], max_tokens: 5, stream }, "completions");
		expect(answer.status).toBe(400);
	}
}
