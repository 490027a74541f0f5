// SPDX-License-Identifier: Apache-2.0
// CPU per response item on the TCP path, server and client in a process each, over loopback.
// node packages/runtime/benchmarks/tcp-path.mjs [streams] [items per stream] [step ms] (after `npx tsc -b`)
import { fork } from "node:child_process";
import { randomUUID } from "node:crypto";
import { createLogger, TcpRequestPlaneClient, TcpRequestPlaneServer } from "../dist/internal.js";

const STREAMS = Number(process.argv[2] ?? 64);
const ITEMS = Number(process.argv[3] ?? 2000);
const STEP_MS = Number(process.argv[4] ?? 2);
const log = createLogger({ filter: "warn", format: "readable", ansi: false, localTime: false });
const PATH = "1/dynamo/backend/generate";
const MAX = 32 * 1024 * 1024;

/** Microseconds of CPU that this process used so far; the kernel's part apart. */
const micros = () => {
	const { user, system } = process.cpuUsage();
	return { total: user + system, system };
};
const perItem = (from, to, items) =>
	`${((to.total - from.total) / items).toFixed(2)} µs/item (${((to.system - from.system) / items).toFixed(2)} in the kernel)`;

async function serve() {
	const server = await TcpRequestPlaneServer.listen({
		host: "127.0.0.1",
		port: 0,
		maxMessageBytes: MAX,
		connectTimeoutMs: 5000,
		maxBufferedResponseBytes: MAX,
		log,
	});
	let writers = [];
	let start;
	server.register(PATH, (_request, response) => {
		writers.push(response);
		if (writers.length === STREAMS) setTimeout(run, 300);
	});
	// As an engine does it: one step makes one token for each stream.
	const run = () => {
		start = micros();
		let step = 0;
		const tick = () => {
			for (let i = 0; i < writers.length; i++) {
				writers[i].send({
					data: {
						token_ids: [1000 + step],
						tokens: null,
						text: null,
						output_type: "text",
						cum_log_probs: null,
						log_probs: null,
						top_logprobs: null,
						finish_reason: null,
						index: null,
					},
				});
			}
			if (++step < ITEMS) STEP_MS > 0 ? setTimeout(tick, STEP_MS) : setImmediate(tick);
			else {
				for (const writer of writers) writer.end();
				setTimeout(() => {
					process.send({ start, end: micros() });
					writers = [];
				}, 200);
			}
		};
		tick();
	};
	process.on("disconnect", () => process.exit(0));
	process.send({ transport: server.address(PATH) });
}

async function main() {
	const child = fork(new URL(import.meta.url), process.argv.slice(2), { env: { ...process.env, SERVE: "1" } });
	const message = () => new Promise((resolve) => child.once("message", resolve));
	const { transport } = await message();
	const client = await TcpRequestPlaneClient.open({
		responseHost: "127.0.0.1",
		responsePort: 0,
		connectTimeoutMs: 5000,
		ackTimeoutMs: 5000,
		firstResponseTimeoutMs: 60_000,
		idleTimeoutMs: 60_000,
		poolSize: 100,
		poolIdleMs: 60_000,
		maxMessageBytes: MAX,
		log,
	});
	const instance = {
		type: "Endpoint",
		namespace: "dynamo",
		component: "backend",
		endpoint: "generate",
		instance_id: 1n,
		transport,
		request_plane_codec: "msgpack",
	};
	for (let round = 0; round < 3; round++) {
		const serverDone = message();
		let items = 0;
		let open = STREAMS;
		let start;
		let startedAt = 0;
		await new Promise((resolve, reject) => {
			for (let i = 0; i < STREAMS; i++) {
				client.send(
					instance,
					{ id: randomUUID(), payload: { token_ids: [1, 2, 3] } },
					{
						onItem() {
							if (items++ === 0) {
								start = micros();
								startedAt = performance.now();
							}
						},
						onEnd() {
							if (--open === 0) resolve();
						},
						onError: reject,
					},
				);
			}
		});
		const end = micros();
		const ms = performance.now() - startedAt;
		const server = await serverDone;
		console.log(
			`${items} items, ${STREAMS} streams, ${Math.round(items / (ms / 1000))}/s: ` +
				`server ${perItem(server.start, server.end, items)}, client ${perItem(start, end, items)}`,
		);
	}
	await client.close();
	child.disconnect();
}

if (process.env.SERVE) await serve();
else await main();
