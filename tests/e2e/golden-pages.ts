// SPDX-License-Identifier: Apache-2.0
// The requests of the runs whose pages of metrics were recorded, and how pages of ours are compared with those.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { METRICS } from "@dynamo-ts/protocols/internal";
import {
	type HttpChild,
	http,
	PROJECT_ROOT,
	type PromFamily,
	type PromPage,
	type PromSample,
	parsePrometheus,
	scrape,
	type WorkerChild,
} from "@dynamo-ts/testing/internal";
import { expect } from "vitest";

export const MODEL = "smol";

export interface Request {
	readonly path: string;
	readonly body: Readonly<Record<string, unknown>>;
}

export const chat = (more: Record<string, unknown> = {}): Request => ({
	path: "/v1/chat/completions",
	body: {
		model: MODEL,
		messages: [{ role: "user", content: "Say something about the weather of today" }],
		max_tokens: 8,
		...more,
	},
});
export const completion = (more: Record<string, unknown> = {}): Request => ({
	path: "/v1/completions",
	body: { model: MODEL, prompt: "Once upon a time", max_tokens: 8, ...more },
});

/** Sends a request `times` times, one after the other. */
export async function send(frontend: HttpChild, request: Request, status: number, times = 1): Promise<void> {
	for (let i = 0; i < times; i++) {
		const answer = await http(frontend.url + request.path, { body: request.body });
		expect(answer.status).toBe(status);
	}
}

/** Reads an answer until `chunks` chunks of it have come, or for `ms`, and leaves. */
export async function leave(frontend: HttpChild, { path, body }: Request, chunks: number, ms: number): Promise<void> {
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

/** Reads a recorded page; `path` is from packages/. */
export const recordedPage = (path: string): PromPage =>
	parsePrometheus(readFileSync(join(PROJECT_ROOT, "packages", path), "utf8"));

/** Added to recorded values before they are compared, and why. */
export type Changes = Readonly<Record<string, readonly [by: number, why: string]>>;

/** Where a page differs from the recorded one on purpose. */
export interface Differences {
	/** Families that are not there. */
	readonly missing?: RegExp;
	/** Families that have tests of their own. */
	readonly elsewhere?: RegExp;
	/** Values that are not compared: times, bytes, ids, what depends on the moment at which a client leaves. */
	readonly loose: RegExp;
	readonly changed?: Changes;
}

/** Labels that tell processes apart, and the kind of request. */
const IGNORED_LABELS = ["worker_id", "router_id", "router_worker_id", "endpoint", "le"];

/** Name and labels, without ours that say the model where Dynamo's do not. */
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

function shapeOf(family: PromFamily | undefined, addedLabels: readonly string[]) {
	return {
		type: family?.type,
		bounds: boundsOf(family),
		labels: [...new Set([...labelsOf(family), ...addedLabels])].sort(),
	};
}

/** Holds a page against a recorded one: families, types, bounds, labels, values; and that what is listed does differ. */
export function compare(recorded: PromPage, ours: PromPage, differences: Differences): void {
	const { missing = /^$/, elsewhere = /^$/, loose, changed = {} } = differences;
	const expected: Record<string, unknown> = {};
	const found: Record<string, unknown> = {};
	for (const [name, family] of recorded.families) {
		if (elsewhere.test(name)) continue;
		const own = ours.families.get(name);
		const added = name.startsWith("dynamo_component_") && labelsOf(own).has("model") ? ["model"] : [];
		expected[name] = missing.test(name) ? shapeOf(undefined, []) : shapeOf(family, added);
		found[name] = shapeOf(own, []);
	}
	expect(found).toEqual(expected);

	const values = valuesOf(ours);
	const recordedValues = valuesOf(recorded);
	const expectedValues: Record<string, number | string | undefined> = {};
	const foundValues: Record<string, number | string | undefined> = {};
	for (const [key, value] of recordedValues) {
		if (missing.test(key) || elsewhere.test(key)) continue;
		const any = loose.test(key);
		expectedValues[key] = any ? "some value" : value + (changed[key]?.[0] ?? 0);
		foundValues[key] = any && values.has(key) ? "some value" : values.get(key);
	}
	expect(foundValues).toEqual(expectedValues);
	expect(Object.keys(changed).filter((key) => !recordedValues.has(key) || loose.test(key))).toEqual([]);
}

/** What is on a page beside the recorded families: other agents' names, this runtime's, and what is there from the start. */
const ADDED =
	/^(process|nodejs|python|vllm:|dynamo_component_(engine|event_plane|kvstats|kv_|total_blocks|gpu_)|dynamo_frontend_(model_(migration|rejection)|router_|worker_)|dynamo_component_router_|dynamo_router_)/;

/** Nothing is on a page but what was recorded and what is added on purpose. */
function expectNothingElse(recorded: PromPage, ours: PromPage, also: readonly string[] = []): void {
	const known = (name: string) => recorded.families.has(name) || also.includes(name) || ADDED.test(name);
	expect([...ours.families.keys()].filter((name) => !known(name))).toEqual([]);
}

/**
 * Holds a frontend's page against the recorded one.
 * @param prompts how many were sent, all of which have been encoded, and how many of their tokens Dynamo did not encode again.
 * @param changed what differs beside that.
 */
export async function expectFrontendPage(
	{ url }: HttpChild,
	fixture: string,
	prompts: { readonly count: number; readonly cachedTokens: number },
	changed: Changes = {},
): Promise<void> {
	const recorded = recordedPage(`frontend/fixtures/observability/${fixture}`);
	const ours = await scrape(url);
	compare(recorded, ours, {
		// Of Rust's runtime.
		missing: /^dynamo_tokio_/,
		loose:
			/(seconds|_ms|sequence_tokens)_sum\{|uptime|event_loop|_us\{|_bytes_|worker_last_|output_tokens_total|detokenize_token_count|uncached_tokens_total|frontend_inter_token_latency_seconds_count/,
		changed: {
			'dynamo_frontend_request_duration_seconds_count{model="smol"}': [-1, "no request for embeddings"],
			'dynamo_frontend_failures_total{class="NotFound",reason="request.not_found"}': [-1, "the same"],
			"dynamo_frontend_tokenizer_cache_hits_total{}": [-prompts.count, "no cache of encoded prompts"],
			"dynamo_frontend_tokenizer_cache_misses_total{}": [prompts.count, "the same"],
			'dynamo_frontend_tokenizer_cache_cached_tokens_total{model="smol"}': [-prompts.cachedTokens, "the same"],
			...changed,
		},
	});
	expectNothingElse(
		recorded,
		ours,
		Object.values(METRICS.nim).map(({ name }) => name),
	);
}

/**
 * What a frontend's page says of tokens fits together.
 * @param whole answers of eight tokens each.
 * @param begun answers that clients left.
 * @returns how many tokens it sent.
 */
export function expectTokensToFit(page: PromPage, whole: number, begun: number): number {
	const tokens = page.sum("dynamo_frontend_output_tokens_total");
	expect(tokens).toBeGreaterThan(whole * 8);
	expect(page.sum("dynamo_frontend_output_sequence_tokens_sum")).toBe(tokens);
	expect(page.sum("dynamo_frontend_detokenize_token_count")).toBe(tokens);
	expect(page.sum("dynamo_frontend_inter_token_latency_seconds_count")).toBe(tokens - whole - begun);
	return tokens;
}

/**
 * Holds a worker's page against the recorded one.
 * @param answers false for a prefill worker: it has no client that leaves, and sends no token after the first.
 */
export async function expectWorkerPage({ system }: WorkerChild, fixture: string, answers = true): Promise<void> {
	const recorded = recordedPage(`worker/fixtures/observability/${fixture}`);
	const ours = await scrape(system);
	compare(recorded, ours, {
		// Dynamo's worker takes a client that left for a failure to publish.
		missing: answers ? /^dynamo_component_errors_total/ : /^$/,
		loose: answers
			? /(seconds|_ms|sequence_tokens)_sum\{|uptime|_bytes_total|inter_token_latency_seconds_count/
			: /(seconds|_ms|sequence_tokens)_sum\{|uptime|_bytes_total/,
	});
	expectNothingElse(recorded, ours);
	// NIM's names would be counted twice.
	for (const { name } of Object.values(METRICS.nim)) expect(ours.families.has(name), name).toBe(false);
}
