// SPDX-License-Identifier: Apache-2.0
// Prefill and decode workers, real ones and ours, behind our frontends and a real one, over each request plane.
import {
	findEtcd,
	findNatsServer,
	findRealDynamo,
	freePort,
	type HttpChild,
	http,
	inflightOf,
	listsModel,
	openStream,
	scrape,
	testModel,
	titled,
	until,
	type WorkerChild,
} from "@dynamo-ts/testing/internal";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Cluster, type Kind, type Plane } from "./cluster.js";

const peer = findRealDynamo();
const hf = testModel("hf");
const nats = findNatsServer();
const etcd = findEtcd();

/** Pairs of workers, by model name: who computes prompts, who answers, and whether they meet by themselves. */
const PAIRS: Record<string, { prefill: Kind; decode: Kind; meet: boolean }> = {
	"real-real": { prefill: "real", decode: "real", meet: false },
	"real-real-meet": { prefill: "real", decode: "real", meet: true },
	"our-our-meet": { prefill: "our", decode: "our", meet: true },
	"our-real-meet": { prefill: "our", decode: "real", meet: true },
	"real-our-meet": { prefill: "real", decode: "our", meet: true },
	"our-real": { prefill: "our", decode: "real", meet: false },
	"real-our": { prefill: "real", decode: "our", meet: false },
};
const MODELS = Object.keys(PAIRS);
/** Pairs whose prefill worker is killed at work. */
const KILLED = ["real-real", "real-real-meet"];

/** Prefix of many blocks, and a different ending. */
const prompt = (ending: string): string => `${Array.from({ length: 60 }, (_, i) => `word ${i}`).join(" ")} ${ending}`;

interface Answer {
	readonly status: number;
	readonly error: string | undefined;
	readonly completionTokens: number;
	readonly prefillId: string;
	readonly decodeId: string;
	readonly hitRate: number | undefined;
}

async function ask(url: string, model: string, content: string): Promise<Answer> {
	const answer = await http(`${url}/v1/chat/completions`, {
		body: {
			model,
			messages: [{ role: "user", content }],
			max_tokens: 5,
			ignore_eos: true,
			nvext: { extra_fields: ["worker_id", "timing"] },
		},
	});
	const idOf = (name: string): string => answer.body.match(new RegExp(`"${name}_worker_id":(\\d+)`))?.[1] ?? "";
	return {
		status: answer.status,
		error: answer.json.error?.message,
		completionTokens: answer.json.usage?.completion_tokens,
		prefillId: idOf("prefill"),
		decodeId: idOf("decode"),
		hitRate: answer.json.nvext?.timing?.kv_hit_rate,
	};
}

for (const plane of ["tcp", "nats"] as const satisfies Plane[]) {
	const missing = peer.missing || hf.missing || (plane === "nats" ? nats.missing : "");
	describe.skipIf(missing)(titled(`prefill and decode workers over ${plane}`, missing), () => {
		let cluster: Cluster;
		const workers: Record<string, { prefill: WorkerChild; decode: WorkerChild }> = {};
		const frontends: Record<string, HttpChild> = {};

		beforeAll(async () => {
			// So many processes that watch folders come near the limit of inotify instances.
			cluster = await Cluster.start(peer.path, hf.path, plane, etcd.missing ? "file" : "etcd");
			await Promise.all(
				Object.entries(PAIRS).map(async ([model, { prefill, decode, meet }]) => {
					const common = ["--block-size", "16"];
					const ports = meet ? ["--bootstrap-ports", String(await freePort())] : [];
					const args = (role: string): string[] => [
						...common,
						...["--speedup-ratio", role === "prefill" && KILLED.includes(model) ? "0.1" : "0.5"],
						...["--disaggregation-mode", role, "--endpoint", `dyn://dynamo.${model}-${role}.generate`],
					];
					const started = await Promise.all([
						cluster.startMocker(prefill, model, [...args("prefill"), ...ports]),
						cluster.startMocker(decode, model, args("decode")),
					]);
					workers[model] = { prefill: started[0], decode: started[1] };
				}),
			);
			const [first] = MODELS as [string];
			frontends["round-robin"] = await cluster.startFrontend("our", first, ["--router-mode", "round-robin"]);
			frontends.kv = await cluster.startFrontend("our", first, ["--router-mode", "kv"]);
			frontends.real = await cluster.startFrontend("real", first, ["--router-mode", "kv"]);
			for (const { url, child } of Object.values(frontends)) {
				for (const model of MODELS)
					await until(`${url} lists ${model}`, () => listsModel(url, model), { child, timeoutMs: 60_000 });
			}
		}, 240_000);
		afterAll(() => cluster?.stop());

		describe.each(["round-robin", "kv", "real"])("the frontend %s", (name) => {
			test.each(MODELS)("%s: the prompt goes to one, the answer comes from the other", async (model) => {
				const { url } = frontends[name] as HttpChild;
				const { prefill, decode } = workers[model] as { prefill: WorkerChild; decode: WorkerChild };
				const before = await Promise.all([prefill, decode].map(({ system }) => handled(system)));
				const first = await ask(url, model, prompt(`${name} once`));
				expect(first).toMatchObject({ status: 200, completionTokens: 5 });
				expect(first.prefillId).toMatch(/^\d+$/);
				expect(first.decodeId).not.toBe(first.prefillId);
				const stream = await openStream(
					`${url}/v1/chat/completions`,
					{
						model,
						messages: [{ role: "user", content: prompt(`${name} streamed`) }],
						max_tokens: 8,
						ignore_eos: true,
						stream: true,
					},
					{ kind: "chat", model, allowReplacementCharacter: true },
				);
				expect((await stream.finished()).choices[0]?.finishReason).toBe("length");
				const after = await Promise.all([prefill, decode].map(({ system }) => handled(system)));
				expect(after.map((count, i) => count - (before[i] as number))).toEqual([2, 2]);
				if (name !== "round-robin" && PAIRS[model]?.prefill === "real") {
					await until("the cached prompt is known", async () => {
						return ((await ask(url, model, prompt(`${name} once`))).hitRate ?? 0) > 0.8;
					});
				}
				for (const worker of [prefill, decode]) {
					await until("nothing is in flight", async () => (await inflightOf(worker)) === 0);
				}
			});
		});

		test("a client that leaves while its prompt is computed frees the prefill worker", async () => {
			const { url } = frontends.kv as HttpChild;
			const { prefill } = workers["real-real"] as { prefill: WorkerChild };
			const abort = new AbortController();
			const body = { model: "real-real", messages: [{ role: "user", content: long("left") }], max_tokens: 5 };
			const request = fetch(`${url}/v1/chat/completions`, {
				method: "POST",
				headers: { "content-type": "application/json" },
				body: JSON.stringify(body),
				signal: abort.signal,
			}).catch(() => undefined);
			await until("the prompt is being computed", async () => (await inflightOf(prefill)) === 1);
			abort.abort();
			await request;
			await until("the prefill worker is free", async () => (await inflightOf(prefill)) === 0);
			expect((await ask(url, "real-real", prompt("after"))).status).toBe(200);
		});

		test.each(KILLED)("%s: with the prefill worker killed the decode worker does it all", async (model) => {
			const { url } = frontends.kv as HttpChild;
			const { prefill } = workers[model] as { prefill: WorkerChild };
			const answer = ask(url, model, long("killed"));
			await until("the prompt is being computed", async () => (await inflightOf(prefill)) === 1);
			prefill.child.kill("SIGKILL");
			const { status, completionTokens, prefillId, decodeId, error } = await answer;
			expect([status, error, completionTokens]).toEqual([200, undefined, 5]);
			expect(prefillId).toBe(decodeId);
			// Its record is there for some seconds more.
			expect((await ask(url, model, prompt("later"))).status).toBe(200);
		});

		test("nothing is left at our frontends", async () => {
			for (const name of ["round-robin", "kv"]) {
				const page = await scrape((frontends[name] as HttpChild).url);
				for (const gauge of ["inflight_requests", "active_requests", "queued_requests", "stage_requests"]) {
					expect(page.sum(`dynamo_frontend_${gauge}`), gauge).toBe(0);
				}
				const phases = new Set(page.select("dynamo_frontend_stage_requests").map(({ labels }) => labels.phase));
				expect([...phases].sort()).toEqual(["", "decode", "prefill"]);
			}
		});
	});
}

/** A prompt that takes a while. */
const long = (ending: string): string => `${Array.from({ length: 900 }, (_, i) => `more ${i}`).join(" ")} ${ending}`;

/** Requests that a worker's endpoint `generate` has had. */
async function handled(system: string): Promise<number> {
	const samples = (await scrape(system)).select("dynamo_component_requests_total");
	return samples
		.filter(({ labels }) => labels.dynamo_endpoint === "generate")
		.reduce((sum, { value }) => sum + value, 0);
}
