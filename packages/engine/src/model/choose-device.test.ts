// SPDX-License-Identifier: Apache-2.0
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import type { CudaProbe } from "../ort/cuda-probe.js";
import { chooseDevice, cudaObstacle } from "./choose-device.js";

const folder = mkdtempSync(join(tmpdir(), "choose-device-"));
for (const name of ["libonnxruntime.so.1", "libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so"]) {
	writeFileSync(join(folder, name), "");
}
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const unreachable = () => Promise.reject(new Error("nobody should have asked"));
const answer = (probe: CudaProbe) => () => Promise.resolve(probe);
const obstacle = cudaObstacle("llama");
const roots = [folder];

describe.skipIf(process.platform !== "linux")("the device", () => {
	test("is the one that was asked for", async () => {
		expect(await chooseDevice({ asked: "cpu", obstacle, roots }, unreachable)).toEqual({ device: "cpu" });
		expect(await chooseDevice({ asked: "cuda", obstacle, roots: [] }, unreachable)).toEqual({ device: "cuda" });
	});

	test("auto takes CUDA where a trial went well, and else says why not", async () => {
		const usable = answer({ usable: true, steps: [] });
		expect(await chooseDevice({ asked: "auto", obstacle, roots }, usable)).toEqual({ device: "cuda" });
		const broken = answer({ usable: false, steps: [], reason: "no driver", cure: "install it" });
		expect(await chooseDevice({ asked: "auto", obstacle, roots }, broken)).toEqual({
			device: "cpu",
			note: "no driver; install it",
		});
	});

	test("auto starts no process where nothing is installed", async () => {
		const { device, note } = await chooseDevice(
			{ asked: "auto", obstacle, roots: [join(folder, "absent")] },
			unreachable,
		);
		expect(device).toBe("cpu");
		expect(note).toMatch(/was not found \(looked in .*absent\)/);
	});

	test("a family that does not run on CUDA runs on the CPU, or is refused by name", async () => {
		const question = { obstacle: cudaObstacle("gemma3"), roots };
		const { device, note } = await chooseDevice({ asked: "auto", ...question }, unreachable);
		expect([device, note]).toEqual(["cpu", expect.stringMatching(/^Gemma 3 .*half precision/)]);
		await expect(chooseDevice({ asked: "cuda", ...question }, unreachable)).rejects.toThrow(
			/Gemma 3 \(text\) does not run on CUDA.*--device cpu/,
		);
	});
});
