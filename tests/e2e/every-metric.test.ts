// SPDX-License-Identifier: Apache-2.0
// Every family of docs/metrics.md is on some process' page, and those that need an occasion are the ones that say so.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fullMetricName, METRICS, SHOWN, shownWhen } from "@dynamo-ts/protocols/internal";
import { Fleet, freePort, http, scrape, testModel, titled, writeTinyModel } from "@dynamo-ts/testing/internal";
import { afterAll, beforeAll, expect, test } from "vitest";

const MODEL = "m";
const ENGINE = ["--quantization", "none", "--max-model-len", "512", "--max-num-seqs", "4"];
const model = testModel("hf");
const fleet = new Fleet();
const folder = mkdtempSync(join(tmpdir(), "dynamo-every-metric-"));
const families: Record<"kv" | "round-robin" | "others", string[]> = { kv: [], "round-robin": [], others: [] };

const familiesOf = async (url: string): Promise<string[]> => [...(await scrape(url)).families.keys()];

beforeAll(async () => {
	if (model.missing) return;
	const tiny = writeTinyModel(folder, model.path);
	const [decode, prefill] = await Promise.all([
		fleet.worker(tiny, MODEL, [...ENGINE, "--is-decode-worker"]),
		fleet.worker(tiny, MODEL, [...ENGINE, "--is-prefill-worker"]),
	]);
	const port = await freePort();
	const router = fleet.start(["router", "--endpoint", "dynamo.backend.generate"], { DYN_SYSTEM_PORT: String(port) });
	await router.waitForOutput(/the router serves /);
	for (const mode of ["kv", "round-robin"] as const) {
		const frontend = await fleet.frontend(MODEL, ["--router-mode", mode]);
		for (const stream of [true, false]) {
			const body = { model: MODEL, messages: [{ role: "user", content: "hello" }], max_tokens: 4, stream };
			expect((await http(`${frontend.url}/v1/chat/completions`, { body })).status).toBe(200);
		}
		families[mode] = await familiesOf(frontend.url);
	}
	const others = await Promise.all([decode.system, prefill.system, `http://127.0.0.1:${port}`].map(familiesOf));
	families.others = others.flat();
}, 120_000);
afterAll(async () => {
	await fleet.stop();
	rmSync(folder, { recursive: true, force: true });
});

/** The catalogue's families by what is said of when they are shown; "": always. */
function byCondition(): Map<string, string[]> {
	const names = new Map<string, string[]>();
	for (const group of Object.keys(METRICS) as (keyof typeof METRICS)[]) {
		for (const [key, { name }] of Object.entries(METRICS[group])) {
			const when = shownWhen(group, key) ?? "";
			names.set(when, [...(names.get(when) ?? []), fullMetricName(group, name)]);
		}
	}
	return names;
}

test(titled("every family is on some page, but for those that need an occasion", model.missing), (context) => {
	context.skip(model.missing !== "", model.missing);
	const seen = new Set(Object.values(families).flat());
	const conditions = byCondition();
	const missing = [...conditions.values()].flat().filter((name) => !seen.has(name));
	const needed = [SHOWN.failure, SHOWN.migration, SHOWN.remoteIndex].flatMap((when) => conditions.get(when) ?? []);
	expect(missing.sort()).toEqual(needed.sort());
});

test(titled("families of the mode kv are on a frontend's page in that mode alone", model.missing), (context) => {
	context.skip(model.missing !== "", model.missing);
	const known = [...byCondition().values()].flat();
	const alone = known.filter((name) => families.kv.includes(name) && !families["round-robin"].includes(name));
	expect(alone.sort()).toEqual(byCondition().get(SHOWN.kv)?.sort());
});
