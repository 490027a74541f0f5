// SPDX-License-Identifier: Apache-2.0
// Workers of both kinds that ask in their model card to be routed to by their caches, before frontends of both kinds that
// would take them in turn.
import { parseJson } from "@dynamo-ts/protocols/internal";
import { DistributedRuntime } from "@dynamo-ts/runtime/internal";
import { findRealDynamo, type HttpChild, http, scrape, testModel, titled, until } from "@dynamo-ts/testing/internal";
import { afterAll, test as base, beforeAll, expect } from "vitest";
import { Cluster, type Kind, MODEL_OF } from "./cluster.js";

const peer = findRealDynamo();
const hf = testModel("hf");
const missing = peer.missing || hf.missing;
const test = missing ? base.skip : base;
const KINDS: Kind[] = ["real", "our"];
/** A prompt of 100 tokens in blocks of 16: all but the last block can be cached. */
const CACHED = 96;
let cluster: Cluster;
const frontends = {} as Record<Kind, HttpChild>;

beforeAll(async () => {
	if (missing) return;
	cluster = await Cluster.start(peer.path, hf.path, "tcp", "file");
	const asked = ["--router-mode", "kv", "--router-temperature", "0", "--active-decode-blocks-threshold", "0.9"];
	const size = ["--num-workers", "2", "--block-size", "16", "--speedup-ratio", "1000"];
	await Promise.all(
		KINDS.map((kind) =>
			cluster.startMocker(kind, MODEL_OF[kind], [...asked, ...size, "--endpoint", `dyn://dynamo.${kind}.generate`]),
		),
	);
	await Promise.all(
		KINDS.map(async (kind) => {
			frontends[kind] = await cluster.startFrontend(kind, MODEL_OF.our, []);
			const { url, child } = frontends[kind];
			const lists = async () => (await http(`${url}/v1/models`)).body.includes(MODEL_OF.real);
			await until("the real workers are listed", lists, { child, timeoutMs: 60_000 });
		}),
	);
}, 180_000);
afterAll(() => cluster?.stop());

test(titled("cards of both kinds ask in the same words", missing), async () => {
	const runtime = await DistributedRuntime.create({
		discoveryBackend: "file",
		fileKvRoot: cluster.env.DYN_FILE_KV as string,
		systemPort: -1,
	});
	try {
		const records = await runtime.discovery.list("v1/mdc");
		const configs = records.flatMap((record) => (record.type === "Model" ? [record.card_json.router_config] : []));
		expect(configs).toHaveLength(4);
		for (const config of configs) expect(config).toEqual(configs[0]);
		expect(configs[0]).toMatchObject({ router_mode: "k_v" });
	} finally {
		await runtime.shutdown();
	}
});

/** Events of caches that a frontend has taken in. */
const heard = async (url: string): Promise<number> =>
	(await scrape(url)).sum("dynamo_component_kv_cache_events_applied", { status: "ok" });

for (const [i, frontend] of KINDS.entries()) {
	test.each(KINDS)(
		titled(`a frontend (${frontend}) sends a prompt to its holder, before workers (%s)`, missing),
		async (kind) => {
			const { url } = frontends[frontend];
			const send = async (n: number): Promise<{ worker: bigint; cached: number }> => {
				const prompt = Array.from({ length: 100 }, (_, at) => 1000 + ((n * 7919 + i * 1009 + at * 104_729) % 40_000));
				const { body } = await http(`${url}/v1/completions`, {
					body: {
						model: MODEL_OF[kind],
						prompt,
						max_tokens: 2,
						ignore_eos: true,
						nvext: { extra_fields: ["worker_id"] },
					},
				});
				const answer = parseJson(body) as {
					nvext: { worker_id: { decode_worker_id: bigint } };
					usage: { prompt_tokens_details?: { cached_tokens?: number } };
				};
				const cached = answer.usage.prompt_tokens_details?.cached_tokens ?? 0;
				return { worker: BigInt(answer.nvext.worker_id.decode_worker_id), cached };
			};
			for (let n = 0; n < 5; n++) {
				const before = await heard(url);
				const { worker } = await send(n);
				await until("the frontend has heard of the blocks", async () => (await heard(url)) > before);
				for (let again = 0; again < 4; again++) expect(await send(n)).toEqual({ worker, cached: CACHED });
			}
		},
	);
}
