// SPDX-License-Identifier: Apache-2.0
// What becomes of files in shared memory whose owner was killed.
import { existsSync, readdirSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, expect, test } from "vitest";
import { openSegment, SharedSegment, sharedMemoryId, sweepSegments } from "./shared-segment.js";

const FOLDER = "/dev/shm";
const made: string[] = [];
afterEach(() => {
	for (const path of made.splice(0)) rmSync(path, { force: true });
});

function leave(name: string): string {
	const path = join(FOLDER, name);
	made.push(path);
	writeFileSync(path, "left behind");
	return path;
}

test.skipIf(sharedMemoryId() === undefined)(
	"names of processes that are gone are removed, all others stay",
	async () => {
		const segment = await SharedSegment.create();
		const [, , space, pid, start, random] = segment.name.split("-") as [string, string, string, string, string, string];
		expect(Number(pid)).toBe(process.pid);
		const path = join(FOLDER, segment.name);
		const name = (...parts: string[]) => `dynamo-kv-${parts.join("-")}`;
		// No process has this id, or another one has it by now.
		const dead = [name(space, "4194305", start, random), name(space, pid, `${Number(start) + 1}`, random)].map(leave);
		const elsewhere = leave(name(`${Number(space) + 1}`, pid, "1", random));
		const old = leave(name(`${Number(space) + 1}`, pid, "2", random));
		utimesSync(old, new Date(0), new Date(0));
		const foreign = [leave(`dynamo-kv-${process.pid}`), leave(`dynamo-other-${random}`)];
		await sweepSegments();
		expect(dead.map((one) => existsSync(one))).toEqual([false, false]);
		expect(existsSync(old)).toBe(false);
		expect([path, elsewhere, ...foreign].every((one) => existsSync(one))).toBe(true);
		expect(await openSegment(segment.name, Buffer.alloc(16))).toBeUndefined();
		const file = await openSegment(segment.name, segment.nonce);
		expect(file).toBeDefined();
		await file?.close();
		await segment.close();
		expect(readdirSync(FOLDER)).not.toContain(segment.name);
	},
);
