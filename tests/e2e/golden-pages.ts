// SPDX-License-Identifier: Apache-2.0
// The requests of the runs whose pages of metrics were recorded, and how pages of ours are compared with those.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import {
	type HttpChild,
	http,
	PROJECT_ROOT,
	type PromFamily,
	type PromPage,
	type PromSample,
	parsePrometheus,
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

/** Where a page differs from the recorded one on purpose. */
export interface Differences {
	/** Families that are not there. */
	readonly missing: RegExp;
	/** Families that have tests of their own. */
	readonly elsewhere?: RegExp;
	/** Values that are not compared: times, bytes, ids, what depends on the moment at which a client leaves. */
	readonly loose: RegExp;
	/** Added to recorded values before they are compared, and why. */
	readonly changed: Readonly<Record<string, readonly [by: number, why: string]>>;
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
	const { missing, elsewhere = /^$/, loose, changed } = differences;
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

/** Names of families that are neither recorded nor added on purpose. */
export function unexpected(recorded: PromPage, ours: PromPage, also: readonly string[] = []): string[] {
	return [...ours.families.keys()].filter(
		(name) => !recorded.families.has(name) && !also.includes(name) && !ADDED.test(name),
	);
}
