// SPDX-License-Identifier: Apache-2.0
// The process that `probeCuda` starts. Prints one line of JSON per step, at once, so that a crash tells where it was.

import { mkdtempSync, rmSync, writeFileSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { OnnxModel, OnnxType } from "../onnx/onnx-model.js";
import { openCuda } from "./cuda-device.js";
import { CudaUnavailableError } from "./cuda-error.js";
import type { ProbeLine } from "./cuda-probe.js";
import { CudaSession } from "./cuda-session.js";

function print(line: ProbeLine): void {
	writeSync(1, `${JSON.stringify(line)}\n`);
}

/** A model of one node that every device can run. */
function smallestModel(): Uint8Array {
	const model = new OnnxModel("probe", "");
	const x = model.input("x", OnnxType.FLOAT, ["n"]);
	model.output("y", OnnxType.FLOAT, ["n"]);
	model.node("Add", [x, x], { outputs: ["y"] });
	return model.serialize();
}

function probe(roots: readonly string[]): void {
	const { library, cudart, device } = openCuda(roots, 0, (step) => print({ step }));
	const folder = mkdtempSync(join(tmpdir(), "dynamo-cuda-"));
	const stream = cudart.createStream();
	try {
		const path = join(folder, "model.onnx");
		writeFileSync(path, smallestModel());
		new CudaSession(path, { library, device, stream, cudaGraphs: false }).close();
		print({ step: "a session with the CUDA provider" });
		print({ done: true });
	} catch (error) {
		print({ reason: (error as Error).message, cure: "see docs/gpu.md" });
	} finally {
		cudart.destroyStream(stream);
		rmSync(folder, { recursive: true, force: true });
	}
}

try {
	probe(JSON.parse(process.argv[2] ?? "[]") as string[]);
} catch (error) {
	if (error instanceof CudaUnavailableError) print({ reason: error.reason, cure: error.cure });
	else print({ reason: (error as Error).message, cure: "see docs/gpu.md" });
}
