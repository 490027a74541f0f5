// SPDX-License-Identifier: Apache-2.0
// After the same requests our pages of metrics say what Dynamo 1.6.1's said: families, types, labels, bounds, values. What
// differs on purpose is listed here.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { METRICS } from "@dynamo-ts/protocols/internal";
import {
	Fleet,
	findPromtool,
	type HttpChild,
	http,
	PROJECT_ROOT,
	type PromFamily,
	type PromPage,
	type PromSample,
	parsePrometheus,
	promtool,
	scrape,
	testModel,
	titled,
	until,
	untilFrontendIdle,
	type WorkerChild,
} from "@dynamo-ts/testing/internal";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

const MODEL = "smol";
const model = testModel("hf");
const checker = findPromtool();
/** Names of Dynamo, of vLLM and of prom-client that a linter does not like. */
const LINTS =
	/^(dynamo_frontend_(detokenize_token_count|detokenize_total_us|tokenizer_latency_ms) |dynamo_router_overhead_\w+_ms |vllm:\w+ (metric names should not contain ':'|non-counter metrics should not have "_total" suffix))/;
/** There is no cache of encoded prompts here, so that each prompt is a miss and all of its tokens are encoded. */
const UNCACHED_PROMPTS: Record<string, readonly [number, string]> = {
	"dynamo_frontend_tokenizer_cache_hits_total{}": [-13, "no cache"],
	"dynamo_frontend_tokenizer_cache_misses_total{}": [13, "no cache"],
	'dynamo_frontend_tokenizer_cache_cached_tokens_total{model="smol"}': [-458, "no cache"],
};

const fleet = new Fleet();
let worker: WorkerChild;
let frontend: HttpChild;

const chat = (more: Record<string, unknown>): Request => ({
	path: "/v1/chat/completions",
	body: {
		model: MODEL,
		messages: [{ role: "user", content: "Say something about the weather of today" }],
		max_tokens: 8,
		...more,
	},
});
const completion = (more: Record<string, unknown>): Request => ({
	path: "/v1/completions",
	body: { model: MODEL, prompt: "Once upon a time", max_tokens: 8, ...more },
});

interface Request {
	readonly path: string;
	readonly body: Readonly<Record<string, unknown>>;
}

/** Reads an answer until `chunks` chunks of it have come, or for `ms`, and leaves. */
async function leave({ path, body }: Request, chunks: number, ms: number): Promise<void> {
	const abort = new AbortController();
	const timer = setTimeout(() => abort.abort(), ms);
	try {
		const answer = await fetch(frontend.url + path, {
			method: "POST",
			headers: { "content-type": "application/json" },
			body: JSON.stringify(body),
			signal: abort.signal,
		});
		let seen = 0;
		for await (const _chunk of answer.body ?? []) if (++seen >= chunks) abort.abort();
	} catch {
		// That is what leaving looks like.
	} finally {
		clearTimeout(timer);
	}
}

async function runLoad(): Promise<void> {
	const send = async (request: Request, status: number) => {
		const answer = await http(frontend.url + request.path, { body: request.body });
		expect(answer.status).toBe(status);
	};
	// The recorded run had one in twelve of them as `responses`.
	for (let i = 0; i < 6; i++) await send(chat({}), 200);
	for (let i = 0; i < 6; i++) await send(chat({ stream: true }), 200);
	await send(completion({}), 200);
	await send(completion({ stream: true }), 200);
	await send({ path: "/v1/chat/completions", body: { ...chat({}).body, model: "nope" } }, 404);
	await send(chat({ messages: [] }), 400);
	await send(chat({ temperature: 9 }), 400);
	await leave(chat({ stream: true, max_tokens: 2000 }), 3, 10_000);
	await leave(chat({ max_tokens: 2000 }), 1, 300);
	await untilFrontendIdle(frontend);
	await until(
		"the worker is idle",
		async () => (await scrape(worker.system)).sum("dynamo_component_inflight_requests") === 0,
	);
}

beforeAll(async () => {
	if (model.missing) return;
	worker = await fleet.mocker(model.path, MODEL);
	frontend = await fleet.frontend(MODEL);
	await runLoad();
}, 120_000);
afterAll(() => fleet.stop());

/** Where a page differs from the recorded one on purpose. */
interface Differences {
	/** Families that are not there. */
	readonly missing: RegExp;
	/** Values that are not compared: times, bytes, ids, what depends on the moment at which a client leaves. */
	readonly loose: RegExp;
	/** Added to recorded values before they are compared, and why. */
	readonly changed: Readonly<Record<string, readonly [by: number, why: string]>>;
}

/** Labels that tell processes apart, the kind of request, and ours that say the model where Dynamo's do not. */
const IGNORED_LABELS = ["worker_id", "router_id", "endpoint", "le"];

function keyOf({ name, labels }: PromSample): string {
	const kept = Object.entries(labels)
		.filter(
			([label]) => !IGNORED_LABELS.includes(label) && !(label === "model" && name.startsWith("dynamo_component_")),
		)
		.map(([label, value]) => `${label}="${value.replace(/^worker_kv_query_source_.*/, "worker_kv_query_source")}"`);
	return `${name}{${kept.sort().join(",")}}`;
}

/** Values by name and labels, requests of all endpoints together. */
function valuesOf(page: PromPage): Map<string, number> {
	const values = new Map<string, number>();
	for (const { samples } of page.families.values()) {
		for (const sample of samples) {
			// An endpoint that we do not have.
			if (sample.name.endsWith("_bucket") || sample.labels.endpoint === "embeddings") continue;
			const key = keyOf(sample);
			values.set(key, (values.get(key) ?? 0) + sample.value);
		}
	}
	return values;
}

const boundsOf = (family: PromFamily | undefined) =>
	[...new Set((family?.samples ?? []).map(({ labels }) => labels.le))].filter((le) => le !== undefined).map(Number);

const labelsOf = (family: PromFamily | undefined) =>
	new Set((family?.samples ?? []).flatMap(({ labels }) => Object.keys(labels)));

function compare(recorded: PromPage, ours: PromPage, { missing, loose, changed }: Differences): void {
	for (const [name, family] of recorded.families) {
		if (missing.test(name)) continue;
		const own = ours.families.get(name);
		expect(own?.type, name).toBe(family.type);
		expect(boundsOf(own), name).toEqual(boundsOf(family));
		const added = name.startsWith("dynamo_component_") && labelsOf(own).has("model") ? ["model"] : [];
		expect([...labelsOf(own)].sort(), name).toEqual([...new Set([...labelsOf(family), ...added])].sort());
	}
	const values = valuesOf(ours);
	for (const [key, value] of valuesOf(recorded)) {
		if (missing.test(key) || loose.test(key)) continue;
		expect(values.get(key), key).toBe(value + (changed[key]?.[0] ?? 0));
	}
}

/** What is on the page beside the recorded families: other agents' names, this runtime's, and what is there from the start. */
const ADDED =
	/^(process|nodejs|python|vllm:|dynamo_component_(engine|event_plane|kvstats|kv_|total_blocks|gpu_)|dynamo_frontend_(model_(migration|rejection)|router_|worker_)|dynamo_component_router_|dynamo_router_)/;

describe("after the same requests", () => {
	const read = (path: string) => parsePrometheus(readFileSync(join(PROJECT_ROOT, "packages", path), "utf8"));

	test(titled("a frontend's page says what Dynamo's says", model.missing), async (context) => {
		context.skip(model.missing !== "", model.missing);
		const recorded = read("frontend/fixtures/observability/metrics_agg_after20.txt");
		const ours = await scrape(frontend.url);
		compare(recorded, ours, {
			// Of Rust's runtime; of routers, which have tests of their own.
			missing: /^dynamo_(tokio|router|component_router)_/,
			loose:
				/_sum\{|uptime|event_loop|_us\{|_bytes_|worker_last_|output_tokens_total|detokenize_token_count|uncached_tokens_total|inter_token_latency_seconds_count|worker_id/,
			changed: {
				'dynamo_frontend_request_duration_seconds_count{model="smol"}': [-1, "no request for embeddings"],
				'dynamo_frontend_failures_total{class="NotFound",reason="request.not_found"}': [-1, "the same"],
				...UNCACHED_PROMPTS,
			},
		});
		const names = [...Object.values(METRICS.nim)].map(({ name }): string => name);
		const extra = [...ours.families.keys()].filter((name) => !recorded.families.has(name) && !names.includes(name));
		expect(extra.filter((name) => !ADDED.test(name))).toEqual([]);
	});

	test(titled("the numbers of tokens fit together", model.missing), async (context) => {
		context.skip(model.missing !== "", model.missing);
		const page = await scrape(frontend.url);
		const tokens = page.sum("dynamo_frontend_output_tokens_total");
		// 14 whole answers of eight tokens, and the beginnings of two.
		expect(tokens).toBeGreaterThan(14 * 8);
		expect(page.sum("dynamo_frontend_output_sequence_tokens_sum")).toBe(tokens);
		expect(page.sum("dynamo_frontend_detokenize_token_count")).toBe(tokens);
		expect(page.sum("dynamo_frontend_inter_token_latency_seconds_count")).toBe(tokens - 16);
		expect(page.sum("time_per_output_token_seconds_count")).toBe(tokens - 16);
		expect(page.sum("generation_tokens_total")).toBe(tokens);
		expect(page.sum("request_success_total")).toBe(14);
		expect(page.sum("request_finish_total", { finished_reason: "abort" })).toBe(2);
		const engine = await scrape(worker.system);
		// What the engine made before it heard that nobody reads any more counts there alone.
		expect(engine.sum("vllm:generation_tokens_total")).toBeGreaterThanOrEqual(tokens);
		expect(engine.sum("vllm:request_success_total", { finished_reason: "length" })).toBe(14);
		expect(engine.sum("vllm:request_success_total", { finished_reason: "abort" })).toBe(2);
	});

	test(titled("a worker's page says what Dynamo's says", model.missing), async (context) => {
		context.skip(model.missing !== "", model.missing);
		const recorded = read("worker/fixtures/observability/metrics_agg_after20.txt");
		const ours = await scrape(worker.system);
		compare(recorded, ours, {
			// Dynamo's worker takes a client that left for a failure to publish.
			missing: /^dynamo_component_errors_total/,
			loose: /_sum\{|uptime|_bytes_total|inter_token_latency_seconds_count|worker_kv_query_source/,
			changed: {},
		});
		const extra = [...ours.families.keys()].filter((name) => !recorded.families.has(name));
		expect(extra.filter((name) => !ADDED.test(name))).toEqual([]);
		// NIM's names would be counted twice.
		for (const { name } of Object.values(METRICS.nim)) expect(ours.families.has(name), name).toBe(false);
	});

	test(
		titled("promtool finds nothing but names that are as they are", model.missing || checker.missing),
		async (context) => {
			context.skip((model.missing || checker.missing) !== "", model.missing || checker.missing);
			for (const url of [frontend.url, worker.system]) {
				const { code, output } = promtool(["check", "metrics"], (await http(`${url}/metrics`)).body);
				// 3: lints; 1: the page cannot be read.
				expect([0, 3], output).toContain(code);
				expect(output.split("\n").filter((line) => line !== "" && !LINTS.test(line))).toEqual([]);
			}
		},
	);
});
