// SPDX-License-Identifier: Apache-2.0
// Which prompts go to prefill workers, and what becomes of those whose prefill worker is lost: real engines on a tiny model,
// one frontend that may leave prompts to decode workers and one that may not.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ENV } from "@dynamo-ts/protocols/internal";
import {
	askChat,
	Fleet,
	type HttpAnswer,
	type HttpChild,
	http,
	scrape,
	testModel,
	textOf,
	titled,
	until,
	untilFrontendIdle,
	untilWorkerIdle,
	type WorkerChild,
	writeTinyModel,
} from "@dynamo-ts/testing/internal";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

const hf = testModel("hf");
const missing = hf.missing;
const MODEL = "split";
const ENGINE = ["--quantization", "none", "--max-model-len", "512", "--max-num-seqs", "4", "--block-size", "16"];
/** Prompts with fewer tokens to compute are left to the decode worker. */
const CONDITION = { policy: "isl_bounding", eff_isl_threshold: 128, eff_isl_ratio_threshold: 1 };

/** About 250 tokens, none of which but the template's any other has. */
let questions = 0;
const long = () => `Story ${++questions}. ${Array.from({ length: 30 }, (_, i) => `Sentence ${i} of many.`).join(" ")}`;
const short = () => `Question ${++questions}?`;

describe.skipIf(missing)(titled("prefill and decode workers with engines", missing), () => {
	let root: string;
	let fleet: Fleet;
	let free: HttpChild;
	let enforced: HttpChild;
	let decode: WorkerChild;
	let prefills: WorkerChild[];

	beforeAll(async () => {
		root = mkdtempSync(join(tmpdir(), "conditional-disagg-"));
		// A stopped process must not be taken for a dead one here.
		fleet = new Fleet({ [ENV.DYN_TCP_REQUEST_TIMEOUT]: "30" });
		const model = writeTinyModel(join(root, "tiny"), hf.path);
		const prefill = () => fleet.worker(model, MODEL, [...ENGINE, "--is-prefill-worker"]);
		const events = ["--kv-events-config", '{"enable_kv_cache_events":true}'];
		const whole = fleet.worker(model, "whole", [...ENGINE, "--endpoint", "dyn://dynamo.whole.generate"]);
		[decode, ...prefills] = await Promise.all([
			fleet.worker(model, MODEL, [...ENGINE, "--is-decode-worker", ...events]),
			prefill(),
			prefill(),
			whole,
		]);
		[free, enforced] = await Promise.all([
			fleet.frontend(
				[MODEL, "whole"],
				[
					...["--router-mode", "kv", "--router-conditional-disagg"],
					...["--router-conditional-disagg-config", JSON.stringify(CONDITION)],
				],
			),
			fleet.frontend(MODEL, ["--router-mode", "round-robin", "--enforce-disagg"]),
		]);
		for (const { url, child } of [free, enforced]) {
			await until("both prefill workers are there", () => prefillWorkers(url, 2), { child });
		}
	}, 120_000);
	afterAll(async () => {
		await fleet?.stop();
		if (root) rmSync(root, { recursive: true, force: true });
	});

	async function prefillWorkers(url: string, count: number): Promise<boolean> {
		const { json } = await http(`${url}/v1/models/${MODEL}/ready`);
		return json.namespaces.dynamo.worker_types.prefill?.workers === count;
	}
	const ask = ({ url }: HttpChild, content: string, model = MODEL): Promise<HttpAnswer> =>
		askChat(url, model, content, { ignore_eos: true });
	/** What a worker answers that does all of it. */
	const answerTo = async (content: string): Promise<string> => textOf(await ask(free, content, "whole"));
	const requests = async (worker: WorkerChild): Promise<number> =>
		(await scrape(worker.system)).sum("dynamo_component_requests_total", { dynamo_endpoint: "generate" });
	/** Prompts that prefill workers have had. */
	const prefilled = async (): Promise<number> =>
		(await Promise.all(prefills.slice(0, 2).map(requests))).reduce((a, b) => a + b);
	const pulls = async (): Promise<number> =>
		(await scrape(decode.system)).sum("dynamo_component_kv_transfer_pulls_total", { result: "ok" });
	const stuck = async ({ url }: HttpChild): Promise<number> =>
		(await scrape(url)).sum("dynamo_frontend_stage_requests", { phase: "prefill" });

	test("short prompts, and long ones that are mostly cached, are computed where the answer is generated", async () => {
		const [cold, brief] = [long(), short()];
		const first = await answerTo(cold);
		expect(textOf(await ask(free, cold))).toBe(first);
		expect([await prefilled(), await pulls()]).toEqual([1, 1]);
		await until("the router knows that it is cached there", async () => {
			const before = await prefilled();
			expect(textOf(await ask(free, cold))).toBe(first);
			return (await prefilled()) === before;
		});
		const before = await prefilled();
		const local = await answerTo(brief);
		expect(textOf(await ask(free, brief))).toBe(local);
		expect(await prefilled()).toBe(before);
		// The other frontend sends every prompt to a prefill worker.
		expect(textOf(await ask(enforced, brief))).toBe(local);
		expect(textOf(await ask(enforced, cold))).toBe(first);
		expect(await prefilled()).toBe(before + 2);
	}, 60_000);

	test("a prompt whose prefill worker is killed goes to the other one", async () => {
		const contents = [long(), long()];
		const expected = await Promise.all(contents.map(answerTo));
		const [victim, other] = prefills as [WorkerChild, WorkerChild];
		victim.child.kill("SIGSTOP");
		const before = await requests(other);
		const answers = contents.map((content) => ask(enforced, content));
		await until("one is answered", async () => (await stuck(enforced)) === 1 && (await requests(other)) === before + 1);
		victim.child.kill("SIGKILL");
		expect((await Promise.all(answers)).map(textOf)).toEqual(expected);
		expect(await requests(other)).toBe(before + 2);
	}, 60_000);

	test("and when that one is killed, too, is computed by the decode worker, unless that is not allowed", async () => {
		const content = long();
		const expected = await answerTo(content);
		const last = prefills[1] as WorkerChild;
		last.child.kill("SIGSTOP");
		const [local, refused] = [ask(free, content), ask(enforced, content)];
		await until("both are at the prefill worker", async () => {
			return (await stuck(free)) === 1 && (await stuck(enforced)) === 1;
		});
		last.child.kill("SIGKILL");
		expect(textOf(await local)).toBe(expected);
		expect((await refused).status).toBe(503);
		for (const frontend of [free, enforced]) await untilFrontendIdle(frontend);
		await untilWorkerIdle(decode);
	}, 60_000);
});
