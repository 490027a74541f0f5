// SPDX-License-Identifier: Apache-2.0
// Builds a folder with ONNX Runtime's real CUDA provider and a null device in place of NVIDIA's libraries, so that
// everything but arithmetic and speed can be tried on a machine without a GPU. Needs gcc, nm and the provider's files.

import { execFileSync } from "node:child_process";
import { copyFileSync, existsSync, linkSync, mkdirSync, readdirSync, symlinkSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { findCudaOrt } from "../cuda-libraries.js";

const SOURCE = fileURLToPath(new URL("../../../fixtures/null-cuda/runtime.c", import.meta.url));
const PROVIDERS = ["libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so"] as const;
/** NVIDIA's libraries that the provider is linked against. */
const LIBRARIES = [
	"libcudart.so.13",
	"libcublas.so.13",
	"libcublasLt.so.13",
	"libcurand.so.10",
	"libcuda.so.1",
] as const;

/** Why a null device cannot be built here; undefined where it can. */
export function nullCudaObstacle(ortFolder: string | undefined): string | undefined {
	if (process.platform !== "linux" || process.arch !== "x64") return "the null device needs Linux on x86-64";
	if (ortFolder === undefined) return "no folder with ONNX Runtime's CUDA provider";
	for (const name of PROVIDERS) if (!existsSync(join(ortFolder, name))) return `${ortFolder} has no ${name}`;
	if (!readdirSync(ortFolder).some((name) => /^libonnxruntime\.so/.test(name))) {
		return `${ortFolder} has no libonnxruntime.so`;
	}
	for (const tool of ["gcc", "nm"]) {
		try {
			execFileSync(tool, ["--version"], { stdio: "ignore" });
		} catch {
			return `${tool} is not installed`;
		}
	}
	return undefined;
}

/** Symbols of a library: those it needs, or those an object file defines, each with its version. */
function symbols(file: string, kind: "needed" | "defined"): Map<string, string> {
	const options = kind === "needed" ? ["-D", "--undefined-only"] : ["--defined-only", "-g"];
	const found = new Map<string, string>();
	for (const line of execFileSync("nm", [...options, file], { encoding: "utf8", maxBuffer: 64 << 20 }).split("\n")) {
		const [name, version] = line.trim().split(" ").at(-1)!.split("@");
		if (name) found.set(name, version ?? "");
	}
	return found;
}

/**
 * Makes `folder` such a folder.
 * @param ortFolder holds libonnxruntime.so.* and its CUDA provider.
 * @param without names of libraries that are left out, to see what their absence does.
 */
export function buildNullCuda(folder: string, ortFolder: string, without: readonly string[] = []): string {
	mkdirSync(folder, { recursive: true });
	const main = readdirSync(ortFolder).find((name) => /^libonnxruntime\.so/.test(name))!;
	try {
		linkSync(join(ortFolder, main), join(folder, main));
	} catch {
		copyFileSync(join(ortFolder, main), join(folder, main));
	}
	for (const name of PROVIDERS) {
		if (!without.includes(name)) symlinkSync(join(ortFolder, name), join(folder, name));
	}
	const needed = symbols(join(ortFolder, "libonnxruntime_providers_cuda.so"), "needed");
	const compile = (...args: string[]) => execFileSync("gcc", ["-O1", "-fPIC", "-w", ...args], { cwd: folder });
	compile("-c", SOURCE, "-o", "runtime.o");
	const written = symbols(join(folder, "runtime.o"), "defined");
	for (const library of LIBRARIES) {
		if (without.includes(library)) continue;
		// The driver's symbols have no version.
		const belongs = (name: string, version: string) =>
			library === "libcuda.so.1" ? version === "" && /^cu[A-Z]/.test(name) : version === library;
		const names = [...needed].filter(([name, version]) => belongs(name, version)).map(([name]) => name);
		const isRuntime = library === "libcudart.so.13";
		const stubs = names.filter((name) => !isRuntime || !written.has(name));
		writeFileSync(join(folder, "stubs.c"), `${stubs.map((name) => `int ${name}(void){return 0;}`).join("\n")}\n`);
		writeFileSync(join(folder, "versions"), `${library} { global: *; };\n`);
		const versions = library === "libcuda.so.1" ? [] : ["-Wl,--version-script=versions"];
		compile(
			"-shared",
			`-Wl,-soname,${library}`,
			...versions,
			"stubs.c",
			...(isRuntime ? ["runtime.o"] : []),
			"-o",
			library,
		);
	}
	return folder;
}

/**
 * The folder with ONNX Runtime and its CUDA provider that tests use: ORT_LIB_DIR, or `ort-cuda` in the cache folder.
 * Undefined where there is none.
 */
export function cudaOrtFolder(env: Readonly<Record<string, string | undefined>>): string | undefined {
	const cache = env.DYN_CACHE_DIR ?? join(env.XDG_CACHE_HOME ?? join(homedir(), ".cache"), "dynamo-ts");
	try {
		return findCudaOrt(env.ORT_LIB_DIR ? [env.ORT_LIB_DIR] : [join(cache, "ort-cuda")]).folder;
	} catch {
		return undefined;
	}
}
