// SPDX-License-Identifier: Apache-2.0
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { buffer } from "node:stream/consumers";
import fc from "fast-check";
import { afterAll, beforeAll, expect, test } from "vitest";
import { makeZip } from "../test-support/zip-writer.js";
import { ZipReader } from "./zip-reader.js";

let folder: string;
beforeAll(() => {
	folder = mkdtempSync(join(tmpdir(), "zip-test-"));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function write(bytes: Buffer): string {
	const path = join(folder, "archive.zip");
	writeFileSync(path, bytes);
	return path;
}

test("any members come out as they went in", async () => {
	const member = fc.record({
		data: fc.uint8Array({ maxLength: 5000 }).map((bytes) => Buffer.from(bytes)),
		deflate: fc.boolean(),
		zip64: fc.boolean(),
	});
	await fc.assert(
		fc.asyncProperty(fc.array(member, { maxLength: 5 }), fc.string({ maxLength: 50 }), async (members, comment) => {
			const named = members.map((each, i) => ({ ...each, name: `folder/é${i}` }));
			const zip = await ZipReader.open(write(makeZip(named, comment)));
			try {
				expect(zip.entries.map(({ name }) => name)).toEqual(named.map(({ name }) => name));
				for (const [i, entry] of zip.entries.entries()) {
					expect(entry.size).toBe(named[i]!.data.length);
					expect(await buffer(await zip.read(entry))).toEqual(named[i]!.data);
				}
			} finally {
				await zip.close();
			}
		}),
		{ numRuns: 40 },
	);
});

test("cut or foreign files are refused, never read wrongly", async () => {
	const whole = makeZip([{ name: "a", data: Buffer.from("hello hello hello"), deflate: true }]);
	for (let length = 0; length < whole.length; length++) {
		await expect(ZipReader.open(write(whole.subarray(0, length)))).rejects.toThrow(/not a whole ZIP/);
	}
	await expect(ZipReader.open(write(Buffer.alloc(70_000, 7)))).rejects.toThrow(/not a whole ZIP/);
});

test("an unknown packing is named", async () => {
	const zip = await ZipReader.open(write(makeZip([{ name: "a", data: Buffer.from("x"), deflate: false }])));
	await expect(zip.read({ ...zip.entries[0]!, method: 12 })).rejects.toThrow(/method 12/);
	await zip.close();
});
