// SPDX-License-Identifier: Apache-2.0
// Answers of which one worker computes the prompt and another the text, with our frontend or Dynamo's between them. In
// fp32, so that no rounding decides between two words; once on a real model, else on one that is loaded in no time.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
	askChat,
	Fleet,
	findRealDynamo,
	type HttpChild,
	PLANES,
	scrape,
	startRealFrontend,
	testModel,
	textOf,
	titled,
	until,
	untilWorkerIdle,
	type WorkerChild,
	writeTinyModel,
} from "@dynamo-ts/testing/internal";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

const gguf = testModel("gguf");
const hf = testModel("hf");
const real = findRealDynamo();
const root = mkdtempSync(join(tmpdir(), "disaggregation-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const ENGINE = ["--quantization", "none", "--max-model-len", "512", "--max-num-seqs", "4"];
const QUESTIONS = [
	"What is the capital of France?",
	`Sum up in one sentence: ${"The sea was calm and the wind came from the west. ".repeat(10)}`,
	"Count from one to ten.",
];

async function ask(url: string, model: string, content: string, more: Record<string, unknown> = {}): Promise<string> {
	return textOf(await askChat(url, model, content, more));
}

const counter = async (worker: WorkerChild, name: string, labels: Record<string, string> = {}): Promise<number> =>
	(await scrape(worker.system)).sum(`dynamo_component_kv_transfer_${name}`, labels);

describe.each([
	{ model: "SmolLM2", plane: "tcp", transport: "shm", how: ["--kv-transfer-transport", "auto"] },
	{ model: "a tiny model", plane: "nats", transport: "tcp", how: ["--kv-transfer-transport", "tcp"] },
	// What is kept is gone before anybody can ask for it.
	{ model: "a tiny model", plane: "tcp", transport: "none", how: ["--kv-transfer-hold", "0"] },
])("$model over $plane, prompts by $transport", ({ model, plane: name, transport, how }) => {
	const plane = PLANES.find((one) => one.name === name)!;
	const isReal = model === "SmolLM2";
	const missing = (isReal ? gguf : hf).missing || plane.missing;
	const expected: string[] = [];
	let fleet: Fleet;
	let prefill: WorkerChild;
	let decode: WorkerChild;
	let ours: HttpChild;

	beforeAll(async () => {
		if (missing) return;
		fleet = await Fleet.over(plane);
		const path = isReal ? gguf.path : writeTinyModel(join(root, "tiny"), hf.path);
		const whole = ["--endpoint", "dyn://dynamo.whole.generate"];
		[, prefill, decode] = await Promise.all([
			fleet.worker(path, "whole", [...ENGINE, ...whole]),
			fleet.worker(path, "split", [...ENGINE, "--is-prefill-worker", ...how]),
			fleet.worker(path, "split", [...ENGINE, "--is-decode-worker", ...how]),
		]);
		ours = await fleet.frontend(["split", "whole"]);
		for (const question of QUESTIONS) expected.push(await ask(ours.url, "whole", question));
	}, 180_000);
	afterAll(() => fleet?.stop());

	const check = async (url: string) => {
		const before = await counter(decode, "pulls_total");
		const failed = await counter(decode, "failures_total");
		const answers = await Promise.all(QUESTIONS.map((question) => ask(url, "split", question)));
		expect(answers).toEqual(expected);
		const broken = transport === "none";
		expect((await counter(decode, "pulls_total")) - before).toBe(QUESTIONS.length);
		expect((await counter(decode, "failures_total")) - failed).toBe(broken ? QUESTIONS.length : 0);
		if (!broken) expect(await counter(decode, "bytes_total", { transport })).toBeGreaterThan(0);
		for (const worker of [prefill, decode]) {
			await untilWorkerIdle(worker);
			const used = async () => (await scrape(worker.system)).sum("dynamo_component_kvstats_active_blocks");
			await until("no block is in use", async () => (await used()) === 0, { child: worker.child });
		}
	};

	test.skipIf(missing)(titled("our frontend", missing), { timeout: 60_000 }, async () => {
		await check(ours.url);
	});

	test.skipIf(missing || real.missing)(
		titled("Dynamo's frontend", missing || real.missing),
		{ timeout: 120_000 },
		async () => {
			const frontend = await startRealFrontend(real.path, fleet.env, "split");
			fleet.children.push(frontend.child);
			await check(frontend.url);
			const seeded = { temperature: 0.8, seed: 5, max_tokens: 8 };
			const sampled = await ask(ours.url, "whole", QUESTIONS[0]!, seeded);
			expect(await ask(frontend.url, "split", QUESTIONS[0]!, seeded)).toBe(sampled);
		},
	);
});
