// SPDX-License-Identifier: Apache-2.0
// `--device` from the command line to the answer. Where ONNX Runtime's CUDA provider is at hand the model runs on a null
// device, whose tokens mean nothing; a machine with a GPU is not needed.
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { buildNullCuda, cudaOrtFolder, nullCudaObstacle } from "@dynamo-ts/engine/internal";
import {
	freePort,
	type HttpChild,
	http,
	parsePrometheus,
	startDynamo,
	startOwnHttp,
	testModel,
	titled,
} from "@dynamo-ts/testing/internal";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

const hf = testModel("hf");
const { path: model, missing } = hf;

const base = mkdtempSync(join(tmpdir(), "cuda-e2e-"));
afterAll(() => rmSync(base, { recursive: true, force: true }));

/** The labels of the series that tells the device, on the page of a system port. */
async function deviceLabels(port: number): Promise<Record<string, string>> {
	const page = await http(`http://127.0.0.1:${port}/metrics`);
	const [series] = parsePrometheus(page.body).select("dynamo_component_engine_device_info");
	expect(series?.value).toBe(1);
	return series!.labels;
}

describe.skipIf(missing !== "" || process.platform !== "linux")(titled("without CUDA", missing), () => {
	const empty = join(base, "empty");
	mkdirSync(empty);

	test("--device cuda ends at once with the reason and the cure", async () => {
		const child = startDynamo(["serve", model, "--device", "cuda", "--http-port", String(await freePort())], {
			env: { ORT_LIB_DIR: empty },
		});
		expect((await child.exited).code).toBe(1);
		expect(child.stderr).toMatch(/CUDA cannot be used: ONNX Runtime with its CUDA provider was not found/);
		expect(child.stderr).toContain(`looked in ${empty}`);
		expect(child.stderr).toContain("docs/gpu.md");
	}, 60_000);

	test("--device auto takes the CPU and says why: in the log and in a metric", async () => {
		const port = await freePort();
		const server = await startOwnHttp(
			"serve",
			[model, "--model-name", "smol", "--device", "auto", "--max-model-len", "256"],
			{ ORT_LIB_DIR: empty, DYN_SYSTEM_PORT: String(port) },
			"smol",
		);
		try {
			expect(server.child.output).toMatch(/the model runs on the CPU.*was not found/);
			expect(await deviceLabels(port)).toMatchObject({ device: "cpu", note: expect.stringContaining(empty) });
		} finally {
			await server.child.stop();
		}
	}, 120_000);
});

const ort = cudaOrtFolder(process.env);
const obstacle = missing || nullCudaObstacle(ort);

describe.skipIf(obstacle !== undefined)(titled("on the null device", obstacle ?? ""), () => {
	let server: HttpChild;
	let port: number;

	beforeAll(async () => {
		port = await freePort();
		// auto: the trial in a child process and the choice are part of the way.
		const env = {
			ORT_LIB_DIR: buildNullCuda(join(base, "null"), ort!),
			NULL_CUDA_MEMORY: String(2 ** 31),
			DYN_CACHE_DIR: join(base, "cache"),
			DYN_SYSTEM_PORT: String(port),
		};
		server = await startOwnHttp("serve", [model, "--model-name", "smol", "--max-num-seqs", "8"], env, "smol");
	}, 180_000);

	test("auto takes CUDA, and requests run to their end side by side", async () => {
		expect(server.child.output).toMatch(/serving the model.*device="?cuda/);
		expect((await deviceLabels(port)).device).toBe("cuda");
		const answers = await Promise.all(
			Array.from({ length: 12 }, (_, i) =>
				http(`${server.url}/v1/completions`, {
					body: {
						model: "smol",
						prompt: `${i} `.repeat(20 * (i + 1)),
						max_tokens: 10 + i,
						ignore_eos: true,
						logprobs: 3,
					},
				}),
			),
		);
		for (const [i, { status, json }] of answers.entries()) {
			expect(status).toBe(200);
			expect(json.choices[0].finish_reason).toBe("length");
			expect(json.usage.completion_tokens).toBe(10 + i);
		}
	}, 60_000);

	test("the process ends well, also with a session on the device", async () => {
		expect(await server.child.stop(20_000)).toEqual({ code: 0, signal: null });
	}, 30_000);
});
