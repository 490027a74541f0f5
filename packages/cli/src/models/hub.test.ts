// SPDX-License-Identifier: Apache-2.0
import { createHash, randomBytes } from "node:crypto";
import { existsSync, lstatSync, mkdtempSync, readFileSync, readlinkSync, rmSync } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { type FakeHub, type FakeHubFile, startFakeHub } from "../test-support/fake-hub.js";
import { HubUnreachableError, parseHubModel, pullFromHub } from "./hub.js";
import type { Progress } from "./progress.js";

const WEIGHTS = randomBytes(300_000);
const FILES: readonly FakeHubFile[] = [
	{ path: "config.json", data: Buffer.from('{"model_type":"llama"}'), lfs: false },
	{ path: "tokenizer.json", data: Buffer.from('{"version":"1.0"}'), lfs: false },
	{ path: "model.safetensors", data: WEIGHTS, lfs: true },
	{ path: "consolidated.safetensors", data: randomBytes(10), lfs: true },
	{ path: "onnx/model.onnx", data: randomBytes(10), lfs: true },
	{ path: "README.md", data: Buffer.from("hello"), lfs: false },
	{ path: "quants/model-q4.gguf", data: randomBytes(50), lfs: true },
];
const MODEL = { repo: "org/name", file: undefined };

let folder: string;
let hub: FakeHub;
let progress: Progress & { values: number[]; total: number | undefined };

beforeEach(() => {
	folder = mkdtempSync(join(tmpdir(), "hub-test-"));
	progress = {
		values: [],
		total: undefined,
		start(_what, have, total) {
			this.values.push(have);
			this.total = total;
		},
		update(have) {
			this.values.push(have);
		},
		stop() {},
	};
});
afterEach(async () => {
	await hub?.close();
	rmSync(folder, { recursive: true, force: true });
});

async function start(files = FILES): Promise<void> {
	hub = await startFakeHub("org/name", files);
}

function pull(env: Record<string, string> = {}, overrides: object = {}): Promise<string> {
	return pullFromHub(MODEL, {
		env: { HF_ENDPOINT: hub.url, HF_HUB_CACHE: folder, ...env },
		weights: true,
		progress,
		note: () => {},
		...overrides,
	});
}

const sha256 = (data: Buffer): string => createHash("sha256").update(data).digest("hex");

describe("pull", () => {
	test("fetches only what a worker reads, in the hub's cache layout", async () => {
		await start();
		const snapshot = await pull();
		expect(snapshot).toBe(join(folder, "models--org--name", "snapshots", hub.commit));
		expect(hub.downloads.map(({ path }) => path).sort()).toEqual([
			"config.json",
			"model.safetensors",
			"tokenizer.json",
		]);
		expect(readFileSync(join(snapshot, "model.safetensors"))).toEqual(WEIGHTS);
		expect(lstatSync(join(snapshot, "model.safetensors")).isSymbolicLink()).toBe(true);
		expect(readlinkSync(join(snapshot, "model.safetensors"))).toBe(`../../blobs/${sha256(WEIGHTS)}`);
		expect(readFileSync(join(folder, "models--org--name", "refs", "main"), "utf8")).toBe(hub.commit);
		expect(progress.values.at(-1)).toBe(progress.total);
	});

	test("without weights leaves the weights out", async () => {
		await start();
		const snapshot = await pull({}, { weights: false });
		expect(existsSync(join(snapshot, "tokenizer.json"))).toBe(true);
		expect(existsSync(join(snapshot, "model.safetensors"))).toBe(false);
	});

	test("a second pull fetches nothing", async () => {
		await start();
		await pull();
		hub.downloads.length = 0;
		await pull();
		expect(hub.downloads).toEqual([]);
	});

	test("goes on after a cut connection at the byte where it was cut", async () => {
		await start([FILES[0]!, FILES[1]!, FILES[2]!]);
		hub.cutAfter = [1_000_000, 1_000_000, 100_000];
		const snapshot = await pull();
		expect(readFileSync(join(snapshot, "model.safetensors"))).toEqual(WEIGHTS);
		const ranges = hub.downloads.filter(({ path }) => path === "model.safetensors").map(({ range }) => range);
		expect(ranges).toEqual([undefined, "bytes=100000-"]);
	});

	test("goes on with what an earlier process left", async () => {
		await start();
		const blobs = join(folder, "models--org--name", "blobs");
		await mkdir(blobs, { recursive: true });
		await writeFile(join(blobs, `${sha256(WEIGHTS)}.incomplete`), WEIGHTS.subarray(0, 123_456));
		const snapshot = await pull();
		expect(readFileSync(join(snapshot, "model.safetensors"))).toEqual(WEIGHTS);
		expect(hub.downloads.find(({ path }) => path === "model.safetensors")?.range).toBe("bytes=123456-");
	});

	test("starts anew when what was left is of other content", async () => {
		await start();
		const blobs = join(folder, "models--org--name", "blobs");
		await mkdir(blobs, { recursive: true });
		await writeFile(join(blobs, `${sha256(WEIGHTS)}.incomplete`), randomBytes(1000));
		const snapshot = await pull();
		expect(readFileSync(join(snapshot, "model.safetensors"))).toEqual(WEIGHTS);
		const ranges = hub.downloads.filter(({ path }) => path === "model.safetensors").map(({ range }) => range);
		expect(ranges).toEqual(["bytes=1000-", undefined]);
	});

	test("takes the whole file from a server without ranges", async () => {
		await start([FILES[0]!, FILES[1]!, FILES[2]!]);
		hub.ignoreRange = true;
		hub.cutAfter = [1_000_000, 1_000_000, 100_000];
		expect(readFileSync(join(await pull(), "model.safetensors"))).toEqual(WEIGHTS);
	});

	test.each([
		["a large file", "model.safetensors", "ab".repeat(32)],
		["a small file", "tokenizer.json", "cd".repeat(20)],
	])("refuses %s with another checksum and keeps nothing of it", async (_kind, path, announcedHash) => {
		await start(FILES.map((file) => (file.path === path ? { ...file, announcedHash } : file)));
		await expect(pull()).rejects.toThrow(/checksum/);
		const blobs = join(folder, "models--org--name", "blobs");
		expect(existsSync(join(blobs, announcedHash))).toBe(false);
		expect(existsSync(join(blobs, `${announcedHash}.incomplete`))).toBe(false);
	});

	test("two pulls at once fetch each file once", async () => {
		await start();
		const [a, b] = await Promise.all([pull(), pull()]);
		expect(a).toBe(b);
		expect(readFileSync(join(a, "model.safetensors"))).toEqual(WEIGHTS);
		expect(hub.downloads).toHaveLength(3);
	});

	test("sends the token of the environment, and names the variable when it is refused", async () => {
		await start();
		hub.token = "secret";
		await expect(pull()).rejects.toThrow(/set HF_TOKEN/);
		await expect(pull({ HF_TOKEN: "wrong" })).rejects.toThrow(/HF_TOKEN has no access/);
		await pull({ HF_TOKEN: "secret" });
		expect(hub.downloads[0]?.authorization).toBe("Bearer secret");
	});

	test("takes the token that a login stored", async () => {
		await start();
		hub.token = "stored";
		const home = join(folder, "home");
		await mkdir(home);
		await writeFile(join(home, "token"), "stored\n");
		await pull({ HF_HUB_CACHE: "", HF_HOME: home });
		expect(existsSync(join(home, "hub", "models--org--name", "refs", "main"))).toBe(true);
	});

	test("a name that the hub does not know", async () => {
		await start();
		const options = { env: { HF_ENDPOINT: hub.url, HF_HUB_CACHE: folder }, weights: true, progress, note: () => {} };
		await expect(pullFromHub({ repo: "org/other", file: undefined }, options)).rejects.toThrow(/no model org\/other/);
	});

	test("one GGUF file, or the list of those that there are", async () => {
		await start();
		const options = { env: { HF_ENDPOINT: hub.url, HF_HUB_CACHE: folder }, weights: true, progress, note: () => {} };
		const path = await pullFromHub({ repo: "org/name", file: "quants/model-q4.gguf" }, options);
		expect(readFileSync(path)).toEqual(FILES[6]!.data);
		await expect(pullFromHub({ repo: "org/name", file: "q8.gguf" }, options)).rejects.toThrow(/quants\/model-q4\.gguf/);
	});

	test("a list that is not a hub's is refused", async () => {
		await start([{ path: "config.json", data: Buffer.from("{}"), lfs: false, announcedHash: "nonsense" }]);
		await expect(pull()).rejects.toThrow(/config\.json|weights/);
	});
});

describe("offline", () => {
	test("uses the cache and asks nobody", async () => {
		await start();
		const snapshot = await pull();
		hub.lists = 0;
		expect(await pull({ HF_HUB_OFFLINE: "1" })).toBe(snapshot);
		expect(hub.lists).toBe(0);
	});

	test("says so when the model is not in the cache, or not wholly", async () => {
		await start();
		await expect(pull({ HF_HUB_OFFLINE: "1" })).rejects.toThrow(/HF_HUB_OFFLINE/);
		await pull({}, { weights: false });
		await expect(pull({ HF_HUB_OFFLINE: "1" })).rejects.toThrow(/HF_HUB_OFFLINE/);
	});

	test("a hub that cannot be reached is an error of its own", async () => {
		await start();
		const url = hub.url;
		await hub.close();
		await expect(pull({ HF_ENDPOINT: url })).rejects.toThrow(HubUnreachableError);
	});
});

test.each([
	["org/name", { repo: "org/name", file: undefined }],
	["org/name.v2", { repo: "org/name.v2", file: undefined }],
	["org/name/file.gguf", { repo: "org/name", file: "file.gguf" }],
	["org/name:sub/file.Q4_1.gguf", { repo: "org/name", file: "sub/file.Q4_1.gguf" }],
	["name", undefined],
	["a/b/c", undefined],
	["org/../name.gguf", undefined],
	["org/name/../x.gguf", undefined],
	["../name", undefined],
])("parse %s", (text, expected) => {
	expect(parseHubModel(text)).toEqual(expected);
});
