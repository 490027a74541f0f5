// SPDX-License-Identifier: Apache-2.0
// Every combination of real and our frontends and mockers, request planes and discovery backends.
import {
	findEtcd,
	findNatsServer,
	findRealDynamo,
	type HttpChild,
	http,
	inflightOf,
	listsModel,
	openStream,
	type SseStream,
	scrape,
	testModel,
	titled,
	until,
	type WorkerChild,
} from "@dynamo-ts/testing/internal";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Backend, Cluster, type Kind, MODEL_OF, type Plane } from "./cluster.js";

const peer = findRealDynamo();
const hf = testModel("hf");
const nats = findNatsServer();
const etcd = findEtcd();
const python = peer.path;
const modelPath = hf.path;

/** Why a combination cannot be run; empty: it can. */
function missingFor(plane: Plane, backend: Backend): string {
	if (peer.missing) return peer.missing;
	if (hf.missing) return hf.missing;
	if (plane === "nats" && nats.missing) return nats.missing;
	if (backend === "etcd" && etcd.missing) return etcd.missing;
	return "";
}

const KINDS: readonly Kind[] = ["our", "real"];
const LONG = 300;

for (const backend of ["file", "etcd"] as const satisfies Backend[]) {
	for (const plane of ["tcp", "nats"] as const satisfies Plane[]) {
		const missing = missingFor(plane, backend);
		describe.skipIf(missing)(titled(`over ${plane}, ${backend} discovery`, missing), () => {
			let cluster: Cluster;
			const frontends = {} as Record<Kind, HttpChild>;
			const workers: Record<Kind, WorkerChild[]> = { our: [], real: [] };

			beforeAll(async () => {
				cluster = await Cluster.start(python, modelPath, plane, backend);
				for (const kind of ["our", "our", "real", "real"] as const) workers[kind].push(await cluster.mocker(kind));
				for (const kind of KINDS) frontends[kind] = await cluster.frontend(kind);
			}, 300_000);
			afterAll(() => cluster?.stop());

			for (const front of KINDS) {
				for (const back of KINDS) {
					describe(`${front} frontend, ${back} mockers`, () => {
						cell(
							() => frontends[front].url,
							workers[back],
							MODEL_OF[back],
							() => cluster.mocker(back),
						);
					});
				}
			}
		});
	}
}

/** What every combination must do. */
function cell(url: () => string, workers: WorkerChild[], model: string, start: () => Promise<WorkerChild>): void {
	const body = (maxTokens: number, stream: boolean) => ({
		model,
		messages: [{ role: "user", content: "Count as far as you can." }],
		max_tokens: maxTokens,
		ignore_eos: true,
		stream,
		...(stream ? { stream_options: { include_usage: true } } : {}),
	});
	const openLong = async (): Promise<SseStream> => {
		const stream = await openStream(`${url()}/v1/chat/completions`, body(LONG, true), {
			kind: "chat",
			model,
			includeUsage: true,
			allowReplacementCharacter: true,
		});
		await stream.events(4);
		return stream;
	};
	const served = async ({ system }: WorkerChild) => (await scrape(system)).sum("dynamo_component_requests_total");
	/** Asks until each worker has got something: from then on the frontend knows them all. */
	const untilAllServe = async () => {
		const before = await Promise.all(workers.map(served));
		await until(
			"the frontend uses every worker",
			async () => {
				await http(`${url()}/v1/chat/completions`, { body: body(1, false) });
				const now = await Promise.all(workers.map(served));
				return now.every((count, i) => count > (before[i] as number));
			},
			{ timeoutMs: 60_000 },
		);
	};
	/** The worker that has a stream under way, taken off the list. */
	const takeBusyWorker = async (): Promise<WorkerChild> => {
		let busy = -1;
		await until("one worker is busy", async () => {
			const counts = await Promise.all(workers.map(inflightOf));
			busy = counts.indexOf(1);
			return busy >= 0;
		});
		return workers.splice(busy, 1)[0] as WorkerChild;
	};

	test("lists the model and answers, unary and with usage", async () => {
		await until(`${model} is listed`, () => listsModel(url(), model), { timeoutMs: 60_000 });
		const answer = await http(`${url()}/v1/chat/completions`, { body: body(7, false) });
		expect(answer.status, answer.body).toBe(200);
		expect(answer.json.choices[0].finish_reason).toBe("length");
		expect(answer.json.usage.completion_tokens).toBe(7);
	}, 90_000);

	test("streams, with usage", async () => {
		const stream = await openLong();
		const summary = await stream.finished();
		expect(summary.choices[0]?.finishReason).toBe("length");
		expect(summary.usage?.completion_tokens).toBe(LONG);
	}, 60_000);

	test("a client that leaves ends the work at the worker", async () => {
		const stream = await openLong();
		const inflight = async () => (await Promise.all(workers.map(inflightOf))).reduce((sum, count) => sum + count, 0);
		expect(await inflight()).toBe(1);
		stream.abort();
		await until("no request is in flight", async () => (await inflight()) === 0);
	}, 60_000);

	test("SIGKILL of the worker in mid-stream: the other one goes on, no token too many or too few", async () => {
		await untilAllServe();
		const stream = await openLong();
		(await takeBusyWorker()).child.kill("SIGKILL");
		const summary = await stream.finished();
		expect(summary.choices[0]?.finishReason).toBe("length");
		expect(summary.usage?.completion_tokens).toBe(LONG);
		workers.push(await start());
	}, 120_000);

	test("SIGTERM of the worker in mid-stream: the stream ends whole, the process ends", async () => {
		await untilAllServe();
		const stream = await openLong();
		const worker = await takeBusyWorker();
		worker.child.kill("SIGTERM");
		const summary = await stream.finished();
		expect(summary.choices[0]?.finishReason).toBe("length");
		expect(summary.usage?.completion_tokens).toBe(LONG);
		await worker.child.exited;
		workers.push(await start());
	}, 120_000);
}
