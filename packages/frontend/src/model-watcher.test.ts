// SPDX-License-Identifier: Apache-2.0
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { ModelRecord } from "@dynamo-ts/protocols/internal";
import { createMemStore, DistributedRuntime } from "@dynamo-ts/runtime";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { ModelFiles } from "./model-files.js";
import { ModelManager } from "./model-manager.js";
import { ModelWatcher } from "./model-watcher.js";
import { folderCard } from "./scripted-worker.js";
import { TINY_MODEL } from "./test-support/stack.js";

let folder: string;
let runtime: DistributedRuntime;
let manager: ModelManager;
let watcher: ModelWatcher;
let told: string[];

beforeEach(async () => {
	folder = await mkdtemp(join(tmpdir(), "dynamo-watcher-"));
	runtime = await DistributedRuntime.create({
		discoveryBackend: "mem",
		memStore: createMemStore(),
		systemPort: -1,
		log: { filter: "off", format: "readable", ansi: false, localTime: false },
	});
	told = [];
	manager = new ModelManager({
		onSet: (set) => told.push(`set ${set.name}`),
		onReadiness: (model, ready) => told.push(`${model} ${ready}`),
		onGone: (model) => told.push(`gone ${model}`),
	});
	const files = new ModelFiles({ cacheDir: folder, modelPath: undefined, timeoutMs: 5000 });
	watcher = new ModelWatcher(runtime, manager, files, {
		namespace: undefined,
		namespacePrefix: undefined,
		routerMode: "round-robin",
		retryMinMs: 5,
	});
	await watcher.start();
});
afterEach(async () => {
	watcher.close();
	await runtime.shutdown();
	await rm(folder, { recursive: true, force: true });
});

async function record(model: string, card: Partial<ModelRecord["card_json"]> = {}): Promise<ModelRecord> {
	return {
		type: "Model",
		namespace: "dynamo",
		component: "backend",
		endpoint: "generate",
		instance_id: runtime.instanceId,
		card_json: { ...(await folderCard(model, TINY_MODEL)), ...card },
	};
}

async function serve() {
	return runtime
		.namespace("dynamo")
		.component("backend")
		.endpoint("generate")
		.serve((_request, response) => response.end());
}

describe("ModelWatcher", () => {
	it("coming and going many times leaves nothing behind", async () => {
		const served = await serve();
		for (let i = 0; i < 20; i++) {
			const model = await record(`m${i}`);
			await runtime.discovery.put(model);
			await manager.waitForReady(`m${i}`, 5000);
			await runtime.discovery.delete(model);
			await expect.poll(() => manager.size).toBe(0);
		}
		await served.stop();
		await expect.poll(() => watcher.instances()).toEqual([]);
		expect(told.filter((line) => line.startsWith("gone"))).toHaveLength(20);
	});

	it("a record that goes before its files are there never shows up", async () => {
		await serve();
		const model = await record("m");
		await runtime.discovery.put(model);
		await runtime.discovery.delete(model);
		await runtime.discovery.put(await record("other"));
		await manager.waitForReady("other", 5000);
		expect(manager.ready().map(({ name }) => name)).toEqual(["other"]);
		expect(told).not.toContain("set m");
	});

	it("a changed card on the same key is refused, but for its taints", async () => {
		await serve();
		await runtime.discovery.put(await record("m"));
		await manager.waitForReady("m", 5000);
		const config = (await record("m")).card_json.runtime_config;
		await runtime.discovery.put(await record("m", { runtime_config: { ...config, taints: ["x"] } }));
		await runtime.discovery.put(await record("m", { display_name: "n" }));
		await runtime.discovery.put(await record("m", { runtime_config: { ...config, context_length: 9 } }));
		await new Promise(setImmediate);
		expect(manager.ready().map(({ name, contextWindow }) => [name, contextWindow])).toEqual([["m", 256]]);
	});

	describe("a card that says how to route", () => {
		const config = (router_mode: string, more: Record<string, unknown> = {}): Record<string, unknown> => ({
			router_config: { router_mode, kv_router_config: {}, load_threshold_config: {}, ...more },
		});
		const setOf = (component: string) => watcher.workerSets().find((set) => set.component === component);
		const put = async (component: string, card: Partial<ModelRecord["card_json"]>): Promise<ModelRecord> => {
			const model = { ...(await record("m", card)), component };
			await runtime.discovery.put(model);
			await expect.poll(() => setOf(component)).toBeDefined();
			return model;
		};

		it("replaces the frontend's settings, for its workers alone", async () => {
			await put("plain", {});
			const kv = { load_threshold_config: { active_decode_blocks_threshold: 0.5 }, session_affinity_ttl_secs: 9 };
			await put("kv", config("k_v", kv));
			await put("broken", config("by-chance"));
			const modes = ["plain", "kv", "broken"].map((component) => setOf(component)?.router.name);
			expect(modes).toEqual(["round-robin", "kv", "round-robin"]);
			expect(setOf("kv")?.load?.thresholds).toMatchObject({ activeDecodeBlocks: 0.5 });
			expect(setOf("kv")?.router.affinity?.options).toEqual({ ttlMs: 9000, mode: "hard" });
			expect(setOf("plain")?.router.affinity).toBeUndefined();
			expect(setOf("plain")?.load?.thresholds.activeDecodeBlocks).toBeUndefined();
		});

		const DECODE = { worker_type: "decode" as const, needs: [["prefill" as const]] };
		const PREFILL = { worker_type: "prefill" as const, needs: [["decode" as const]], model_type: "" };

		it.each(["before", "after"])(
			"prefill workers that say nothing and come %s do as those that answer",
			async (when) => {
				if (when === "before") await put("prefill", PREFILL);
				const conditional = { conditional_disagg_enabled: true, conditional_disagg_eff_isl_threshold: 7 };
				const decode = await put("decode", { ...DECODE, ...config("k_v", { kv_router_config: conditional }) });
				if (when === "after") await put("prefill", PREFILL);
				expect([setOf("decode")?.router.name, setOf("prefill")?.router.name]).toEqual(["kv", "kv"]);
				expect(setOf("decode")?.wish?.conditional).toMatchObject({ effIslThreshold: 7, policy: "isl_bounding" });
				expect(setOf("prefill")?.size).toBe(1);
				// Others that answer, who say nothing: the frontend's settings hold for both again.
				await runtime.discovery.delete(decode);
				await put("decode2", DECODE);
				await expect.poll(() => setOf("prefill")?.router.name).toBe("round-robin");
				expect(setOf("prefill")?.size).toBe(1);
			},
		);

		it("prefill workers that say nothing stay as they are until the first of those that answer leave", async () => {
			const prefill = await put("prefill", PREFILL);
			const refused = await record("m", { ...PREFILL, kv_cache_block_size: prefill.card_json.kv_cache_block_size + 1 });
			await runtime.discovery.put({ ...refused, component: "prefill", instance_id: 7n });
			const decode = await put("decode", { ...DECODE, ...config("k_v") });
			await expect.poll(() => setOf("prefill")?.router.name).toBe("kv");
			const before = setOf("prefill");
			expect([before?.memberIds(), watcher.refused()], "who came first").toEqual([[runtime.instanceId], [7n]]);
			const decode2 = await put("decode2", { ...DECODE, ...config("random") });
			await runtime.discovery.put({ ...decode2, instance_id: 8n });
			await expect.poll(() => setOf("decode2")?.size).toBe(2);
			expect(setOf("prefill")).toBe(before);
			await runtime.discovery.delete(decode);
			await expect.poll(() => setOf("prefill")?.router.name).toBe("random");
		});

		it("prefill workers that say so themselves have ways of their own", async () => {
			await put("decode", { ...DECODE, ...config("least_loaded") });
			await put("prefill", { ...PREFILL, ...config("k_v") });
			await put("decode2", { ...DECODE, ...config("random") });
			expect(["decode", "prefill", "decode2"].map((one) => setOf(one)?.router.name)).toEqual([
				"least-loaded",
				"kv",
				"random",
			]);
		});
	});

	it("readiness follows the instance, not the record", async () => {
		const served = await serve();
		await runtime.discovery.put(await record("m"));
		await manager.waitForReady("m", 5000);
		await served.stop();
		await expect.poll(() => manager.find("m")?.ready).toBe(false);
		expect(manager.hasType("Chat")).toBe(true);
		await serve();
		await manager.waitForReady("m", 5000);
		await expect(manager.waitForReady("nope", 10)).rejects.toThrow(/nope was not ready within 10 ms/);
	});

	it("a LoRA record is a model of its own, whose name goes with the request", async () => {
		await serve();
		await runtime.discovery.put(await record("base"));
		const adapter = await record("adapter", { lora: { name: "adapter" } });
		await runtime.discovery.put({ ...adapter, model_suffix: "adapter" });
		await manager.waitForReady("base", 5000);
		await manager.waitForReady("adapter", 5000);
		await runtime.discovery.delete({ ...adapter, model_suffix: "adapter" });
		await expect.poll(() => manager.find("adapter")).toBeUndefined();
		expect(manager.find("base")?.ready).toBe(true);
	});
});
