// SPDX-License-Identifier: Apache-2.0
// The file of `--router-policy-config`, in Dynamo's format: classes of requests, for all models and for some.
import { readFileSync } from "node:fs";
import { DynamoError, isJsonObject } from "@dynamo-ts/protocols/internal";
import { parse } from "yaml";
import { type PolicyClass, PolicyProfile, type QueueOrder, type TokenBucket } from "./policy-profile.js";

const NAME = /^[A-Za-z0-9_.-]+$/;
const PROFILE_KEYS = ["default_policy_family", "policy_classes", "uncached_isl_buckets"] as const;
const CLASS_KEYS = [
	"name",
	"policy_family",
	"cache_bucket",
	"queue_policy",
	"quantum",
	"prefill_busy_threshold",
	"prefill_busy_threshold_frac",
	"busy_worker_ratio",
	"request_queue_limit_per_worker",
	"raw_isl_token_queue_limit_per_worker",
	"cached_token_queue_limit_per_worker",
];

/** What a policy file says. */
export class RouterPolicyConfig {
	readonly #root: PolicyProfile | undefined;
	readonly #models: ReadonlyMap<string, PolicyProfile>;

	/** @throws DynamoError `InvalidArgument` that names the file and what is wrong in it. */
	static fromFile(path: string): RouterPolicyConfig {
		let text: string;
		try {
			text = readFileSync(path, "utf8");
		} catch (error) {
			throw new DynamoError("InvalidArgument", `the router policy file cannot be read: ${(error as Error).message}`);
		}
		return RouterPolicyConfig.parse(text, path);
	}

	/** @throws DynamoError `InvalidArgument` that names `where` and what is wrong. */
	static parse(text: string, where = "the router policy"): RouterPolicyConfig {
		let body: unknown;
		try {
			body = parse(text);
		} catch (error) {
			throw new DynamoError("InvalidArgument", `${where}: no YAML: ${(error as Error).message}`);
		}
		return new RouterPolicyConfig(new Part(body, where));
	}

	private constructor(body: Part) {
		body.knows([...PROFILE_KEYS, "models", "worker_selection"]);
		checkSelection(body);
		const given = PROFILE_KEYS.filter((key) => body.has(key));
		if (given.length > 0 && given.length < PROFILE_KEYS.length) {
			body.fail(`${PROFILE_KEYS.join(", ")} go together; there is only ${given.join(", ")}`);
		}
		this.#root = given.length > 0 ? profileOf(body) : undefined;
		const models = new Map<string, PolicyProfile>();
		if (body.has("models")) {
			const parts = body.part("models");
			for (const name of parts.keys()) {
				const part = parts.part(name);
				part.knows(PROFILE_KEYS);
				models.set(name, profileOf(part));
			}
		}
		this.#models = models;
		if (this.#root === undefined && models.size === 0 && !body.has("worker_selection")) {
			body.fail("there must be policy_classes, models or worker_selection");
		}
	}

	/** The classes for a model; undefined where the file says nothing about it. */
	profileOf(model: string): PolicyProfile | undefined {
		return this.#models.get(model) ?? this.#root;
	}
}

/** Only Dynamo's own way of choosing is there; a file may name it. */
function checkSelection(body: Part): void {
	if (!body.has("worker_selection")) return;
	const selection = body.part("worker_selection");
	selection.knows(["aggregated", "prefill", "decode", "encode", "instances"]);
	if (selection.has("instances") && selection.list("instances").length > 0) {
		selection.fail("instances of other policies cannot be loaded; the cost is set by --router-* flags");
	}
	for (const stage of selection.keys()) {
		if (stage !== "instances" && selection.text(stage) !== "default") {
			selection.fail(`${stage} must be default, the only way of choosing that is there`);
		}
	}
}

function profileOf(part: Part): PolicyProfile {
	const bucketNames: string[] = [];
	const buckets: TokenBucket[] = part.list("uncached_isl_buckets").map((bucket) => {
		bucket.knows(["min_tokens", "bucket"]);
		bucketNames.push(bucket.name("bucket"));
		return { minTokens: bucket.whole("min_tokens") };
	});
	if (buckets[0]?.minTokens !== 0) part.fail("uncached_isl_buckets must begin at min_tokens 0");
	buckets.forEach(({ minTokens }, i) => {
		if (i > 0 && minTokens <= (buckets[i - 1]?.minTokens ?? 0)) {
			part.fail("min_tokens of uncached_isl_buckets must rise");
		}
	});
	if (new Set(bucketNames).size < bucketNames.length) part.fail("two uncached_isl_buckets have the same name");
	const classes: PolicyClass[] = [];
	const explicit = new Map<string, number>();
	const families = new Map<string, number[]>();
	for (const one of part.list("policy_classes")) {
		const place = classes.push(classOf(one)) - 1;
		const { name } = classes[place] as PolicyClass;
		if (classes.findIndex((other) => other.name === name) < place) part.fail(`there are two classes ${name}`);
		if (one.has("policy_family") !== one.has("cache_bucket")) {
			one.fail("policy_family and cache_bucket go together; a class without both is chosen by its name");
		}
		if (!one.has("policy_family")) {
			explicit.set(name, place);
			continue;
		}
		const bucket = bucketNames.indexOf(one.name("cache_bucket"));
		if (bucket < 0) one.fail(`there is no bucket ${one.name("cache_bucket")}`);
		const family = one.name("policy_family");
		const places = families.get(family) ?? [];
		families.set(family, places);
		if (places[bucket] !== undefined) one.fail(`family ${family} has two classes for bucket ${bucketNames[bucket]}`);
		places[bucket] = place;
	}
	for (const [family, places] of families) {
		const gap = bucketNames.findIndex((_, i) => places[i] === undefined);
		if (gap >= 0) part.fail(`family ${family} has no class for bucket ${bucketNames[gap]}`);
		if (explicit.has(family)) part.fail(`${family} is the name of a class and of a family`);
	}
	const standard = part.name("default_policy_family");
	if (!families.has(standard)) part.fail(`default_policy_family ${standard} has no classes`);
	return new PolicyProfile(classes, explicit, families, standard, buckets);
}

function classOf(part: Part): PolicyClass {
	part.knows(CLASS_KEYS);
	const order = part.has("queue_policy") ? part.text("queue_policy") : "fcfs";
	if (order !== "fcfs" && order !== "wspt") part.fail("queue_policy must be fcfs or wspt");
	const quantum = part.whole("quantum");
	if (quantum === 0) part.fail("quantum must be above 0");
	const optional = (key: string): number | undefined => (part.has(key) ? part.whole(key) : undefined);
	const policy: PolicyClass = {
		name: part.name("name"),
		order: order as QueueOrder,
		quantum,
		prefillBusyThreshold: optional("prefill_busy_threshold"),
		prefillBusyThresholdFrac: part.has("prefill_busy_threshold_frac")
			? part.number("prefill_busy_threshold_frac")
			: undefined,
		busyWorkerRatio: part.has("busy_worker_ratio") ? part.number("busy_worker_ratio") : undefined,
		requestLimit: optional("request_queue_limit_per_worker"),
		promptTokenLimit: optional("raw_isl_token_queue_limit_per_worker"),
		cachedTokenLimit: optional("cached_token_queue_limit_per_worker"),
	};
	const { busyWorkerRatio: ratio } = policy;
	if (ratio !== undefined && (ratio <= 0 || ratio > 1)) part.fail("busy_worker_ratio must be above 0 and at most 1");
	if (
		ratio !== undefined &&
		policy.prefillBusyThreshold === undefined &&
		policy.prefillBusyThresholdFrac === undefined
	) {
		part.fail("busy_worker_ratio means nothing without prefill_busy_threshold or prefill_busy_threshold_frac");
	}
	return policy;
}

/** A mapping of the file, and where it is. */
class Part {
	readonly #body: Record<string, unknown>;
	readonly #where: string;

	constructor(body: unknown, where: string) {
		this.#where = where;
		if (!isJsonObject(body)) this.fail("must be a mapping");
		this.#body = body as Record<string, unknown>;
	}

	fail(what: string): never {
		throw new DynamoError("InvalidArgument", `${this.#where}: ${what}`);
	}

	keys(): string[] {
		return Object.keys(this.#body);
	}

	has(key: string): boolean {
		return this.#body[key] !== undefined && this.#body[key] !== null;
	}

	/** Refuses keys that nothing reads: a misspelt limit would be none. */
	knows(keys: readonly string[]): void {
		for (const key of this.keys()) {
			if (!keys.includes(key)) this.fail(`${key} is not known here; known are ${keys.join(", ")}`);
		}
	}

	part(key: string): Part {
		return new Part(this.#body[key], `${this.#where}: ${key}`);
	}

	list(key: string): Part[] {
		const list = this.#body[key];
		if (!Array.isArray(list)) return this.fail(`${key} must be a list`);
		if (list.length === 0 && key !== "instances") this.fail(`${key} is empty`);
		return list.map((item, i) => new Part(item, `${this.#where}: ${key}[${i}]`));
	}

	text(key: string): string {
		const value = this.#body[key];
		return typeof value === "string" ? value : this.fail(`${key} must be text`);
	}

	name(key: string): string {
		const text = this.text(key);
		return NAME.test(text) ? text : this.fail(`${key} "${text}" may have only letters, digits, _, . and -`);
	}

	number(key: string): number {
		const value = this.#body[key];
		if (typeof value === "number" && Number.isFinite(value) && value >= 0) return value;
		return this.fail(`${key} must be a number from 0 on`);
	}

	whole(key: string): number {
		const value = this.number(key);
		return Number.isSafeInteger(value) ? value : this.fail(`${key} must be a whole number`);
	}
}
