// SPDX-License-Identifier: Apache-2.0
// Finds a real browser for tests of pages.
import { spawnSync } from "node:child_process";
import type { Found } from "./found.js";

let found: Found | undefined;

/** The Chromium program, or why there is none. */
export function findChromium(): Found {
	if (found !== undefined) return found;
	for (const name of ["chromium", "chromium-browser", "google-chrome"]) {
		const which = spawnSync("sh", ["-c", `command -v ${name}`], { encoding: "utf8" });
		if (which.status === 0) {
			found = { path: which.stdout.trim(), missing: "" };
			return found;
		}
	}
	found = { path: "", missing: "no chromium on the PATH (Debian: apt-get install chromium)" };
	return found;
}
