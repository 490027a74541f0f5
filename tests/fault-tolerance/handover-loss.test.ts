// SPDX-License-Identifier: Apache-2.0
// Prefill and decode workers that are killed, or fall silent, in the middle of handing over a prompt. Stopped processes make
// the middle last: what they are sent stays in the sockets, and goes on when they do. Mutual TLS throughout.
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ENV } from "@dynamo-ts/protocols/internal";
import {
	askChat,
	CertificateAuthority,
	Fleet,
	findOpenssl,
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
const missing = hf.missing || findOpenssl().missing;
const ENGINE = ["--quantization", "none", "--max-model-len", "512", "--max-num-seqs", "4"];
/** Longest time to fetch a prompt. */
const TIMEOUT_S = 3;

/** A question that nobody has seen, with 12 MB of keys and values: more than sockets take. */
let questions = 0;
const question = () =>
	`Story ${++questions}. ${Array.from({ length: 48 }, (_, i) => `Sentence ${i} of many.`).join(" ")}`;

describe.skipIf(missing)(titled("a prompt on its way between two workers", missing), () => {
	let authority: CertificateAuthority;
	let root: string;
	let fleet: Fleet;
	let frontend: HttpChild;
	let model: string;
	let decode: WorkerChild;
	let prefill: WorkerChild;

	beforeAll(async () => {
		authority = new CertificateAuthority();
		const { cert, key } = authority.sign();
		root = mkdtempSync(join(tmpdir(), "handover-loss-"));
		fleet = new Fleet({
			[ENV.DYN_TCP_TLS_CERT_PATH]: cert,
			[ENV.DYN_TCP_TLS_KEY_PATH]: key,
			[ENV.DYN_TCP_TLS_CA_CERT_PATH]: authority.ca,
			[ENV.DYN_TCP_TLS_CLIENT_CA_CERT_PATH]: authority.ca,
			[ENV.DYN_TCP_TLS_CLIENT_CERT_PATH]: cert,
			[ENV.DYN_TCP_TLS_CLIENT_KEY_PATH]: key,
			// Processes are stopped here while requests reach them.
			[ENV.DYN_TCP_TLS_HANDSHAKE_TIMEOUT_SECS]: "20",
			[ENV.DYN_TCP_REQUEST_TIMEOUT]: "20",
		});
		model = writeTinyModel(join(root, "tiny"), hf.path, {
			num_hidden_layers: 8,
			num_key_value_heads: 4,
			head_dim: 128,
		});
		const whole = fleet.worker(model, "whole", [...ENGINE, "--endpoint", "dyn://dynamo.whole.generate"]);
		[decode, prefill] = await Promise.all([startDecode(), startPrefill("tcp"), whole]);
		frontend = await fleet.frontend(["split", "whole"], ["--migration-limit", "1"]);
	}, 120_000);
	afterAll(async () => {
		await fleet?.stop();
		authority?.remove();
		if (root) rmSync(root, { recursive: true, force: true });
	});

	const startDecode = () =>
		fleet.worker(model, "split", [...ENGINE, "--is-decode-worker", "--kv-transfer-timeout", String(TIMEOUT_S)]);
	const startPrefill = (transport: "auto" | "tcp") =>
		fleet.worker(model, "split", [...ENGINE, "--is-prefill-worker", "--kv-transfer-transport", transport]);
	const instances = async (component: string): Promise<string[]> => {
		const { body } = await http(`${frontend.url}/health`);
		const found = body.matchAll(new RegExp(`"component":"${component}"[^}]*?"instance_id":(\\d+)`, "g"));
		return [...found].map(([, id]) => id as string);
	};
	/** Resolves once the frontend has another worker of a component than before. */
	async function untilSeen(component: string, started: () => Promise<WorkerChild>): Promise<WorkerChild> {
		const before = await instances(component);
		const worker = await started();
		await until("the frontend sees it", async () => (await instances(component)).some((id) => !before.includes(id)));
		return worker;
	}
	const ask = (name: string, content: string): Promise<HttpAnswer> =>
		askChat(frontend.url, name, content, { ignore_eos: true });
	const count = async (worker: WorkerChild, name: string, labels: Record<string, string> = {}) =>
		(await scrape(worker.system)).sum(`dynamo_component_${name}`, labels);
	const failures = (worker: WorkerChild, reason?: string) =>
		count(worker, "kv_transfer_failures_total", reason === undefined ? {} : { reason });
	const sent = (worker: WorkerChild) => count(worker, "kv_transfer_bytes_total", { direction: "sent" });
	const hasBlocks = async (worker: WorkerChild) => (await count(worker, "kvstats_active_blocks")) > 0;
	const stop = (...workers: WorkerChild[]) => {
		for (const { child } of workers) child.kill("SIGSTOP");
	};
	const goOn = (...workers: WorkerChild[]) => {
		for (const { child } of workers) child.kill("SIGCONT");
	};

	/** The prompt is computed, and neither side can go on: the decode workers have the request, the prefill worker is stopped. */
	async function askHalfway(content: string, ...decodes: WorkerChild[]): Promise<{ answer: Promise<HttpAnswer> }> {
		const atDecode = async () =>
			(await scrape(frontend.url)).sum("dynamo_frontend_stage_requests", { phase: "decode" }) > 0;
		expect(await atDecode()).toBe(false);
		for (const one of decodes) await until("no prompt is there", async () => !(await hasBlocks(one)));
		stop(...decodes);
		const answer = ask("split", content);
		await until("the prompt is computed", atDecode);
		stop(prefill);
		return { answer };
	}

	/** The decode worker has asked for the prompt and is stopped, the prefill worker goes on. @returns who has asked. */
	async function inTheMiddle(...decodes: WorkerChild[]): Promise<WorkerChild> {
		goOn(...decodes);
		let asking: WorkerChild | undefined;
		await until("the prompt is asked for", async () => {
			for (const one of decodes) if (await hasBlocks(one)) asking = one;
			return asking !== undefined;
		});
		// What the engine told with its blocks, that it wants the prompt, is worked off before the next answer.
		await hasBlocks(asking as WorkerChild);
		stop(asking as WorkerChild);
		goOn(prefill);
		return asking as WorkerChild;
	}

	async function untilIdle(...workers: WorkerChild[]): Promise<void> {
		await untilFrontendIdle(frontend);
		for (const worker of workers) {
			await untilWorkerIdle(worker);
			for (const gauge of ["kvstats_active_blocks", "kv_transfer_held_blocks"]) {
				await until(`${gauge} is 0`, async () => (await count(worker, gauge)) === 0, { child: worker.child });
			}
		}
	}

	test("arrives over TLS, and is computed when the prefill worker falls silent", async () => {
		const first = question();
		expect(textOf(await ask("split", first))).toBe(textOf(await ask("whole", first)));
		expect(await count(decode, "kv_transfer_pulls_total", { result: "ok" })).toBe(1);
		const second = question();
		const expected = textOf(await ask("whole", second));
		const { answer } = await askHalfway(second, decode);
		goOn(decode);
		expect(textOf(await answer)).toBe(expected);
		expect(await failures(decode, "timeout")).toBe(1);
		goOn(prefill);
		await untilIdle(prefill, decode);
		expect(await count(prefill, "kv_transfer_holds_total", { outcome: "released" })).toBe(1);
	}, 60_000);

	test("is computed when the prefill worker is killed with half of it sent", async () => {
		// Opens the connection that the next one comes over.
		textOf(await ask("split", "Hello"));
		const content = question();
		const expected = textOf(await ask("whole", content));
		const before = await sent(prefill);
		const received = await count(decode, "kv_transfer_bytes_total", { direction: "received" });
		const { answer } = await askHalfway(content, decode);
		await inTheMiddle(decode);
		await until("some of it is sent", async () => (await sent(prefill)) > before);
		prefill.child.kill("SIGKILL");
		await prefill.child.exited;
		goOn(decode);
		expect(textOf(await answer)).toBe(expected);
		expect(await failures(decode)).toBe(2);
		expect(await failures(decode, "lost")).toBe(1);
		expect(await count(decode, "kv_transfer_bytes_total", { direction: "received" })).toBeGreaterThan(received);
		await untilIdle(decode);
	}, 60_000);

	test("is let go of when the decode worker is killed with half of it there; another one answers", async () => {
		let other: WorkerChild;
		[prefill, other] = await Promise.all([
			untilSeen("prefill", () => startPrefill("tcp")),
			untilSeen("backend", startDecode),
		]);
		for (const one of [decode, other]) {
			const before = await count(one, "kv_transfer_pulls_total", { result: "ok" });
			await until("its connection is open", async () => {
				textOf(await ask("split", `Hello again, for the ${++questions}th time`));
				return (await count(one, "kv_transfer_pulls_total", { result: "ok" })) > before;
			});
		}
		const content = question();
		const expected = textOf(await ask("whole", content));
		const before = await sent(prefill);
		const { answer } = await askHalfway(content, decode, other);
		const victim = await inTheMiddle(decode, other);
		await until("some of it is sent", async () => (await sent(prefill)) > before);
		expect(await count(prefill, "kv_transfer_held_blocks")).toBeGreaterThan(0);
		victim.child.kill("SIGKILL");
		await until("nothing is kept", async () => (await count(prefill, "kv_transfer_held_blocks")) === 0);
		decode = victim === decode ? other : decode;
		expect(textOf(await answer)).toBe(expected);
		expect(await count(prefill, "kv_transfer_holds_total", { outcome: "released" })).toBe(1);
		await untilIdle(prefill, decode);
	}, 60_000);

	test("leaves nothing in shared memory beyond the next start when the prefill worker is killed", async () => {
		const segments = () => readdirSync("/dev/shm").filter((name) => name.includes(`-${prefill.child.pid}-`));
		textOf(await ask("split", "What is known"));
		prefill.child.kill("SIGKILL");
		prefill = await untilSeen("prefill", () => startPrefill("auto"));
		// That the decode worker has it already is told over a connection, which stays: one without a segment so far. The
		// frontend may know the new worker's address before its card, and leave the prompt to the decode worker till then.
		await until("it is told", async () => {
			textOf(await ask("split", "What is known"));
			return (await count(prefill, "kv_transfer_holds_total", { outcome: "released" })) > 0;
		});
		const content = question();
		const expected = textOf(await ask("whole", content));
		const { answer } = await askHalfway(content, decode);
		await inTheMiddle(decode);
		await until("a segment is offered", () => segments().length === 1);
		prefill.child.kill("SIGKILL");
		await prefill.child.exited;
		// Asked at once: it lies there until any worker of this host starts, perhaps one of another test.
		expect(segments()).toHaveLength(1);
		goOn(decode);
		expect(textOf(await answer)).toBe(expected);
		await startPrefill("auto");
		expect(segments()).toHaveLength(0);
		await untilIdle(decode);
	}, 60_000);
});
