// SPDX-License-Identifier: Apache-2.0
// Datadog's own check of an OpenMetrics page, with the names of its integration for NVIDIA NIM.
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import type { Found } from "./found.js";
import { PROJECT_ROOT } from "./own-processes.js";

/** A Python with datadog-checks-base: DATADOG_PYTHON, or that of the virtual environment which CI makes. */
const PYTHON = process.env.DATADOG_PYTHON ?? join(homedir(), ".cache", "datadog-peer", "bin", "python");
/** The script that runs the check: DATADOG_CHECK, or the one that lies beside this project where CI runs. */
const SCRIPT = process.env.DATADOG_CHECK ?? join(PROJECT_ROOT, "..", "shared", "peers", "datadog_check.py");

/** Path of the script, when it and its Python are there. */
export function findDatadogCheck(): Found {
	if (!existsSync(PYTHON)) {
		return { path: "", missing: `no Python with Datadog's check: ${PYTHON} does not exist (set DATADOG_PYTHON)` };
	}
	if (!existsSync(SCRIPT)) {
		return { path: "", missing: `no script that runs Datadog's check: ${SCRIPT} does not exist (set DATADOG_CHECK)` };
	}
	return { path: SCRIPT, missing: "" };
}

/** Runs the check, two scrapes and the probe of the version. @returns its exit code and all that it said. */
export function runDatadogCheck(metricsUrl: string): Promise<{ code: number; output: string }> {
	return new Promise((resolve) => {
		execFile(PYTHON, [SCRIPT, metricsUrl], { timeout: 60_000 }, (error, stdout, stderr) => {
			const code = error === null ? 0 : typeof error.code === "number" ? error.code : 1;
			resolve({ code, output: stdout + stderr });
		});
	});
}
