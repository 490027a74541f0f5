// SPDX-License-Identifier: Apache-2.0
import { existsSync, mkdtempSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { withFileLock } from "./file-lock.js";

let folder: string;
beforeEach(() => {
	folder = mkdtempSync(join(tmpdir(), "lock-test-"));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

test("one at a time, and the file is gone afterwards", async () => {
	const path = join(folder, "sub", "a.lock");
	let inside = 0;
	let most = 0;
	await Promise.all(
		Array.from({ length: 5 }, () =>
			withFileLock(path, { pollMs: 1 }, async () => {
				most = Math.max(most, ++inside);
				await new Promise((resolve) => setImmediate(resolve));
				inside--;
			}),
		),
	);
	expect(most).toBe(1);
	expect(existsSync(path)).toBe(false);
});

test("the lock of a dead process is taken over", async () => {
	const path = join(folder, "a.lock");
	writeFileSync(path, "1\n");
	const old = new Date(Date.now() - 60_000);
	utimesSync(path, old, old);
	let waited = 0;
	expect(await withFileLock(path, { pollMs: 1, onWait: () => waited++ }, async () => "done")).toBe("done");
	expect(waited).toBe(1);
});

test("waiting can be given up; an error frees the lock", async () => {
	const path = join(folder, "a.lock");
	writeFileSync(path, "1\n");
	const controller = new AbortController();
	const waiting = withFileLock(path, { signal: controller.signal, onWait: () => controller.abort() }, async () => {});
	await expect(waiting).rejects.toThrow(/abort/i);
	rmSync(path);
	await expect(withFileLock(path, {}, () => Promise.reject(new Error("broken")))).rejects.toThrow("broken");
	expect(existsSync(path)).toBe(false);
});
