// SPDX-License-Identifier: Apache-2.0
// Do /live and /metrics of a worker answer while it prefills a long prompt?
import { fileDiscoveryEnv, freePort, startDynamo, startOwnHttp } from "@dynamo-ts/testing/internal";
import { report, requireModel, withTempFolder } from "./lib.js";

const model = await requireModel();
await withTempFolder(async (folder) => {
	const systemPort = await freePort();
	const env = { ...fileDiscoveryEnv(folder), DYN_SYSTEM_PORT: String(systemPort) };
	const worker = startDynamo(["worker", "--model", model, "--model-name", "m"], { env });
	const frontend = await startOwnHttp("frontend", [], fileDiscoveryEnv(folder), "m");
	try {
		const start = performance.now();
		let done = 0;
		const request = fetch(`${frontend.url}/v1/chat/completions`, {
			method: "POST",
			headers: { "content-type": "application/json" },
			body: JSON.stringify({
				model: "m",
				messages: [{ role: "user", content: "time ".repeat(1500) }],
				max_tokens: 1,
			}),
		}).then(async (answer) => {
			const body = (await answer.json()) as { usage?: { prompt_tokens: number } };
			done = performance.now() - start;
			return body.usage?.prompt_tokens ?? 0;
		});
		const times: Record<string, number[]> = { "/live": [], "/metrics": [] };
		while (!done) {
			for (const path of Object.keys(times)) {
				const sent = performance.now();
				await (await fetch(`http://127.0.0.1:${systemPort}${path}`)).text();
				if (!done) times[path]!.push(performance.now() - sent);
			}
		}
		const tokens = await request;
		report(
			`Worker while it prefills ${tokens} tokens (${done.toFixed(0)} ms)`,
			Object.entries(times).map(([path, values]) => ({
				path,
				probes: values.length,
				"median (ms)": values.sort((a, b) => a - b)[values.length >> 1]!.toFixed(2),
				"worst (ms)": Math.max(...values).toFixed(2),
			})),
		);
	} finally {
		await Promise.all([worker.stop(), frontend.child.stop()]);
	}
});
