// SPDX-License-Identifier: Apache-2.0
import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, renameSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { CudaUnavailableError } from "./cuda-error.js";
import { checkProviderVersion, findCudaOrt } from "./cuda-libraries.js";
import { probeCuda } from "./cuda-probe.js";
import { buildNullCuda, cudaOrtFolder, nullCudaObstacle } from "./testing/null-cuda.js";

// Each of the later tests compiles libraries and starts a process.
vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

const base = mkdtempSync(join(tmpdir(), "cuda-probe-"));
afterAll(() => rmSync(base, { recursive: true, force: true }));

let folders = 0;
function folder(...files: string[]): string {
	const path = join(base, `folder-${folders++}`);
	mkdirSync(path);
	for (const name of files) writeFileSync(join(path, name), "");
	return path;
}

const ALL = ["libonnxruntime.so.1.30.0", "libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so"];

function problem(body: () => unknown): CudaUnavailableError {
	try {
		body();
	} catch (error) {
		if (error instanceof CudaUnavailableError) return error;
		throw error;
	}
	throw new Error("nothing was thrown");
}

describe.skipIf(process.platform !== "linux")("where ONNX Runtime with CUDA is looked for", () => {
	test("the first folder that has it, also where the wheel was unpacked", () => {
		const wheel = folder();
		mkdirSync(join(wheel, "onnxruntime/capi"), { recursive: true });
		for (const name of ALL) writeFileSync(join(wheel, "onnxruntime/capi", name), "");
		const plain = folder(...ALL);
		expect(findCudaOrt([folder(), plain]).library).toBe(join(plain, ALL[0]!));
		expect(findCudaOrt([wheel, plain])).toMatchObject({ root: wheel, folder: join(wheel, "onnxruntime/capi") });
	});

	test("a missing provider is named, and so are the folders without anything", () => {
		const half = folder("libonnxruntime.so.1", ALL[1]!);
		expect(problem(() => findCudaOrt([half])).reason).toContain("not libonnxruntime_providers_cuda.so");
		const empty = folder();
		expect(problem(() => findCudaOrt([empty, join(base, "absent")])).reason).toContain(`${empty}, ${base}/absent`);
		expect(problem(() => findCudaOrt([])).message).toMatch(/ORT_LIB_DIR.*docs\/gpu\.md/);
	});

	test("a provider of another version is refused, wherever in the file its version stands", () => {
		const place = folder(...ALL);
		const ort = findCudaOrt([place]);
		// On the border of two pieces of the search.
		const bytes = Buffer.alloc((1 << 22) + 100);
		bytes.write("\x001.30.0\x00", (1 << 22) - 3, "latin1");
		writeFileSync(ort.provider, bytes);
		checkProviderVersion(ort, "1.30.0");
		expect(problem(() => checkProviderVersion(ort, "1.29.0")).reason).toMatch(/is not of version 1\.29\.0/);
	});
});

const obstacle = nullCudaObstacle(cudaOrtFolder(process.env));

describe.skipIf(obstacle !== undefined)(`probing with the real provider${obstacle ? ` (${obstacle})` : ""}`, () => {
	const ort = cudaOrtFolder(process.env)!;
	let whole: string;
	beforeAll(() => {
		whole = buildNullCuda(folder(), ort);
	});

	const env = (settings: Record<string, string>) => ({ ...process.env, ...settings });

	test("a null device is usable, and the process ends well", () => {
		const child = fileURLToPath(new URL("../../dist/ort/cuda-probe-child.js", import.meta.url));
		const run = spawnSync(process.execPath, [child, JSON.stringify([whole])], { encoding: "utf8" });
		expect(run.stdout).toContain('{"done":true}');
		expect(run.stdout).toContain("device 0: null device, compute capability 9.0");
		expect([run.status, run.signal]).toEqual([0, null]);
	});

	test("NVIDIA's libraries are found where their wheels unpack to", async () => {
		const site = folder();
		mkdirSync(join(site, "onnxruntime"));
		mkdirSync(join(site, "nvidia/cu13/lib"), { recursive: true });
		const built = buildNullCuda(join(site, "onnxruntime/capi"), ort);
		for (const name of ["libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10", "libcuda.so.1"]) {
			renameSync(join(built, name), join(site, "nvidia/cu13/lib", name));
		}
		expect(await probeCuda([site])).toMatchObject({ usable: true });
	});

	test.each([
		["no device", { NULL_CUDA_DEVICES: "0" }, /no CUDA-capable device is detected \(error 100\)/, /nvidia-smi/],
		["an old driver", { NULL_CUDA_DRIVER: "12040" }, /the driver serves CUDA 12\.4, 13 is needed/, /driver 580/],
		["no driver", { NULL_CUDA_DRIVER: "0" }, /no NVIDIA driver/, /--gpus/],
	])("%s", async (_, settings, reason, cure) => {
		const probe = await probeCuda([whole], env(settings));
		expect(probe.usable).toBe(false);
		expect(probe.reason).toMatch(reason);
		expect(probe.cure).toMatch(cure);
	});

	test.each([
		["libcublasLt.so.13", /libcublasLt\.so\.13: cannot open shared object file/, /CUDA 13/],
		["libcuda.so.1", /libcuda\.so\.1: cannot open shared object file/, /driver, 580/],
	])("without %s", async (name, reason, cure) => {
		const probe = await probeCuda([buildNullCuda(folder(), ort, [name])]);
		expect(probe.usable).toBe(false);
		expect(probe.reason).toMatch(reason);
		expect(probe.cure).toMatch(cure);
	});

	test("a library that kills the process is told with the last good step", async () => {
		const broken = buildNullCuda(folder(), ort);
		const source = join(broken, "crash.c");
		writeFileSync(source, "#include <signal.h>\n__attribute__((constructor)) void crash(void){raise(SIGSEGV);}\n");
		rmSync(join(broken, "libcurand.so.10"));
		spawnSync("gcc", ["-shared", "-fPIC", source, "-o", join(broken, "libcurand.so.10")]);
		const probe = await probeCuda([broken]);
		expect(probe.reason).toMatch(/^a trial process died of SIGSEGV after "ONNX Runtime: /);
	});

	test("a file that is no library is named with the loader's words", async () => {
		const wrong = buildNullCuda(folder(), ort, ["libcublas.so.13"]);
		symlinkSync(join(wrong, "stubs.c"), join(wrong, "libcublas.so.13"));
		expect((await probeCuda([wrong])).reason).toMatch(/libcublas\.so\.13: (invalid ELF header|file too short)/);
	});
});
