// SPDX-License-Identifier: Apache-2.0
// Workers of both kinds that ask in their model card to be routed to by their caches, before frontends of both kinds that
// would take them in turn.
import { DistributedRuntime } from "@dynamo-ts/runtime/internal";
import { findRealDynamo, type HttpChild, sendPrompt, testModel, titled, until } from "@dynamo-ts/testing/internal";
import { afterAll, test as base, beforeAll, expect } from "vitest";
import { Cluster, eventsHeard, type Kind, MODEL_OF } from "./cluster.js";

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
			frontends[kind] = await cluster.frontend(kind);
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

for (const [i, frontend] of KINDS.entries()) {
	test.each(KINDS)(
		titled(`a frontend (${frontend}) sends a prompt to its holder, before workers (%s)`, missing),
		async (kind) => {
			const { url } = frontends[frontend];
			const send = (n: number) =>
				sendPrompt(
					url,
					MODEL_OF[kind],
					Array.from({ length: 100 }, (_, at) => 1000 + ((n * 7919 + i * 1009 + at * 104_729) % 40_000)),
				);
			for (let n = 0; n < 5; n++) {
				const before = await eventsHeard(url);
				const { worker } = await send(n);
				await until("the frontend has heard of the blocks", async () => (await eventsHeard(url)) > before);
				for (let again = 0; again < 4; again++) expect(await send(n)).toEqual({ worker, cached: CACHED });
			}
		},
	);
}
