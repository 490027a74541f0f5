// SPDX-License-Identifier: Apache-2.0
// CPU of the frontend per streamed token, behind a scripted worker and before clients that only count; each in a
// process of its own, over TCP. Also the time to the first token of a single request.
// node packages/frontend/benchmarks/cpu-per-token.mjs [streams] [tokens per stream] [step ms] (after `npx tsc -b`)
import { fork } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { DistributedRuntime } from "../../runtime/dist/index.js";
import { startFrontend } from "../dist/index.js";
import { startScriptedWorker } from "../dist/internal.js";

const STREAMS = Number(process.argv[2] ?? 64);
const TOKENS = Number(process.argv[3] ?? 1000);
const STEP_MS = Number(process.argv[4] ?? 2);
const FOLDER = process.env.DYNAMO_TEST_MODEL_HF ?? fileURLToPath(new URL("../fixtures/tiny-model", import.meta.url));

const runtimeOf = (fileKvRoot) =>
	DistributedRuntime.create({
		discoveryBackend: "file",
		fileKvRoot,
		systemPort: -1,
		log: { filter: process.env.DYN_LOG ?? "warn", format: "readable", ansi: false, localTime: false },
	});

async function worker() {
	let calls = [];
	const output = (id) => ({
		token_ids: [id],
		tokens: null,
		text: null,
		output_type: "text",
		cum_log_probs: null,
		log_probs: null,
		top_logprobs: null,
		finish_reason: null,
		index: null,
	});
	// As an engine does it: one step makes one token for each stream.
	const run = () => {
		const open = calls;
		calls = [];
		const tokens = open[0].body.stop_conditions.max_tokens;
		let step = 0;
		const tick = () => {
			for (const call of open) call.response.send({ data: output(70 + (step % 180)) });
			if (++step < tokens) STEP_MS > 0 ? setTimeout(tick, STEP_MS) : setImmediate(tick);
			else for (const call of open) call.finish("length").end();
		};
		tick();
	};
	const script = (call) => {
		calls.push(call);
		if (call.body.stop_conditions.max_tokens === 1) {
			calls.pop();
			call.response.send({ data: output(70) });
			call.finish("length").end();
		} else if (calls.length === STREAMS) setTimeout(run, 200);
	};
	await startScriptedWorker(await runtimeOf(process.env.ROOT), {
		model: "bench",
		folder: FOLDER,
		script,
		card: { runtime_config: { context_length: 100_000 } },
	});
	process.on("disconnect", () => process.exit(0));
}

async function frontend() {
	const running = await startFrontend(await runtimeOf(process.env.ROOT), {
		host: "127.0.0.1",
		port: 0,
		modelCacheDir: join(process.env.ROOT, "cache"),
	});
	await running.waitForModel("bench", 20_000);
	process.on("message", () => process.send({ cpu: process.cpuUsage(), rss: process.memoryUsage().rss }));
	process.on("disconnect", () => process.exit(0));
	process.send({ port: running.port });
}

/** Posts a chat request on a fresh connection; counts data lines in the bytes as they come. */
function stream(port, maxTokens, onFirst) {
	const body = JSON.stringify({
		model: "bench",
		messages: [{ role: "user", content: "Hi" }],
		max_tokens: maxTokens,
		stream: true,
	});
	return new Promise((resolve, reject) => {
		const socket = connect(port, "127.0.0.1", () => {
			socket.setNoDelay(true);
			socket.write(
				`POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
			);
		});
		let bytes = 0;
		let reads = 0;
		let tail = "";
		socket.on("data", (chunk) => {
			if (reads++ === 0) onFirst();
			bytes += chunk.length;
			tail = (tail + chunk.subarray(-30).toString()).slice(-60);
		});
		socket.on("close", () => (tail.includes("[DONE]") ? resolve({ bytes, reads }) : reject(new Error(`cut: ${tail}`))));
		socket.on("error", reject);
	});
}

async function main() {
	const root = mkdtempSync(join(tmpdir(), "dynamo-bench-"));
	const start = (role) =>
		fork(new URL(import.meta.url), process.argv.slice(2), { env: { ...process.env, ROLE: role, ROOT: root } });
	const message = (child) => new Promise((resolve) => child.once("message", resolve));
	const children = [start("worker"), start("frontend")];
	try {
		const { port } = await message(children[1]);
		const usage = () => {
			const answer = message(children[1]);
			children[1].send({});
			return answer;
		};
		for (let round = 0; round < 4; round++) {
			let before;
			let startedAt;
			const streams = await Promise.all(
				Array.from({ length: STREAMS }, () =>
					stream(port, TOKENS, () => {
						startedAt ??= performance.now();
						before ??= usage();
					}),
				),
			);
			const ms = performance.now() - startedAt;
			const from = await before;
			const to = await usage();
			const tokens = STREAMS * TOKENS;
			const user = (to.cpu.user - from.cpu.user) / tokens;
			const system = (to.cpu.system - from.cpu.system) / tokens;
			const reads = streams.reduce((sum, each) => sum + each.reads, 0);
			console.log(
				`${tokens} tokens, ${Math.round(tokens / (ms / 1000))}/s: ${(user + system).toFixed(2)} µs/token ` +
					`(${system.toFixed(2)} in the kernel), ${(tokens / reads).toFixed(2)} tokens/read, ${Math.round(to.rss / 2 ** 20)} MB`,
			);
		}
		const first = [];
		for (let i = 0; i < 60; i++) {
			const startedAt = performance.now();
			await stream(port, 1, () => first.push(performance.now() - startedAt));
		}
		first.sort((a, b) => a - b);
		console.log(`first token at one stream: ${first[30].toFixed(2)} ms median, ${first[57].toFixed(2)} ms 95 %`);
	} finally {
		for (const child of children) child.disconnect();
		rmSync(root, { recursive: true, force: true });
	}
}

const roles = { worker, frontend };
await (roles[process.env.ROLE] ?? main)();
