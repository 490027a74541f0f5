// SPDX-License-Identifier: Apache-2.0
// Tells whether models can run on CUDA, by trying in a child process: whatever a broken driver or library does there,
// the caller lives on and can say how far it came.

import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";

/** How long loading of the libraries and a first session may take, in ms; a cold disk holds about a gigabyte of them. */
const DEADLINE_MS = 120_000;
/** Bytes of output that are kept. */
const OUTPUT_LIMIT = 1 << 16;

/** What a probe found. */
export interface CudaProbe {
	readonly usable: boolean;
	/** Steps that went well, in words and order. */
	readonly steps: readonly string[];
	/** Why it is not usable, with the loader's or the runtime's words. */
	readonly reason?: string;
	/** What to do about it. */
	readonly cure?: string;
}

/** One line of the child's output. */
export type ProbeLine =
	| { readonly step: string }
	| { readonly done: true }
	| { readonly reason: string; readonly cure: string };

function childPath(): string {
	const inSource = import.meta.url.endsWith(".ts");
	return fileURLToPath(
		new URL(inSource ? "../../dist/ort/cuda-probe-child.js" : "./cuda-probe-child.js", import.meta.url),
	);
}

/** Reads what the child printed and how it ended. */
function readProbe(output: string, ending: string | undefined): CudaProbe {
	const steps: string[] = [];
	for (const text of output.split("\n")) {
		let line: ProbeLine;
		try {
			line = JSON.parse(text) as ProbeLine;
		} catch {
			// What libraries print on their own.
			continue;
		}
		if ("step" in line) steps.push(line.step);
		else if ("done" in line) return { usable: true, steps };
		else if ("reason" in line) return { usable: false, steps, reason: line.reason, cure: line.cure };
	}
	const after = steps.length === 0 ? "before its first step" : `after "${steps.at(-1)}"`;
	return {
		usable: false,
		steps,
		reason: `a trial process ${ending ?? "ended"} ${after}`,
		cure: "check the driver and that all libraries are of CUDA 13 and ONNX Runtime 1.30.0",
	};
}

/**
 * Tries CUDA in a child process: libraries, driver, devices, and a session of one node.
 * @param roots folders in which ONNX Runtime with its CUDA provider is looked for.
 */
export function probeCuda(roots: readonly string[], env?: NodeJS.ProcessEnv): Promise<CudaProbe> {
	return new Promise((resolve) => {
		const child = spawn(process.execPath, [childPath(), JSON.stringify(roots)], {
			stdio: ["ignore", "pipe", "ignore"],
			...(env && { env }),
		});
		let output = "";
		let late = false;
		const deadline = setTimeout(() => {
			late = true;
			child.kill("SIGKILL");
		}, DEADLINE_MS);
		child.stdout.setEncoding("utf8").on("data", (text: string) => {
			if (output.length < OUTPUT_LIMIT) output += text;
		});
		child.once("error", (error) => {
			clearTimeout(deadline);
			resolve(readProbe("", `could not be started (${error.message})`));
		});
		child.once("close", (code, signal) => {
			clearTimeout(deadline);
			const ending = late
				? `had not ended after ${DEADLINE_MS / 1000} s`
				: signal
					? `died of ${signal}`
					: `ended with code ${code}`;
			resolve(readProbe(output, ending));
		});
	});
}
