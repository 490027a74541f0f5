// SPDX-License-Identifier: Apache-2.0
// The command from outside: exit codes, lines on stderr, signals. Runs what `npm run setup` built.
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import type { AddressInfo } from "node:net";
import { createServer, type Server } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { COMMANDS } from "./command-list.js";

const BIN = fileURLToPath(new URL("../../../bin/dynamo", import.meta.url));
const BUILT = existsSync(new URL("../dist/main.js", import.meta.url));

let folder: string;
const running = new Set<ChildProcess>();
let blocker: Server | undefined;

beforeEach(() => {
	folder = mkdtempSync(join(tmpdir(), "cli-test-"));
});
afterEach(async () => {
	for (const child of running) child.kill("SIGKILL");
	running.clear();
	await new Promise((resolve) => (blocker === undefined ? resolve(undefined) : blocker.close(resolve)));
	blocker = undefined;
	rmSync(folder, { recursive: true, force: true });
});

interface Run {
	readonly child: ChildProcess;
	readonly stdout: () => string;
	readonly stderr: () => string;
	/** The exit code, or the signal's name. */
	readonly ended: Promise<number | string>;
	/** Resolves once stdout contains the text. */
	says(text: RegExp): Promise<RegExpExecArray>;
}

function run(args: readonly string[], env: Record<string, string> = {}): Run {
	const clean = Object.fromEntries(
		Object.entries(process.env).filter(([name]) => !/^(DYN_|HF_|NODE_OPTIONS|VITEST)/.test(name)),
	);
	const child = spawn(process.execPath, [BIN, ...args], {
		stdio: ["pipe", "pipe", "pipe"],
		env: {
			...clean,
			HF_HUB_OFFLINE: "1",
			HF_HUB_CACHE: join(folder, "hub"),
			DYN_CACHE_DIR: join(folder, "cache"),
			DYN_FILE_KV: join(folder, "kv"),
			DYN_TCP_RPC_HOST: "127.0.0.1",
			...env,
		},
	});
	running.add(child);
	let stdout = "";
	let stderr = "";
	const waiting = new Set<() => void>();
	child.stdout!.setEncoding("utf8").on("data", (text: string) => {
		stdout += text;
		for (const check of waiting) check();
	});
	child.stderr!.setEncoding("utf8").on("data", (text: string) => {
		stderr += text;
	});
	const ended = new Promise<number | string>((resolve) => {
		child.once("close", (code, signal) => {
			running.delete(child);
			resolve(code ?? signal ?? "");
		});
	});
	return {
		child,
		stdout: () => stdout,
		stderr: () => stderr,
		ended,
		says: (text) =>
			new Promise((resolve, reject) => {
				const check = (): void => {
					const found = text.exec(stdout);
					if (found === null) return;
					waiting.delete(check);
					resolve(found);
				};
				waiting.add(check);
				check();
				void ended.then((code) => reject(new Error(`ended with ${code} before it said ${text}: ${stderr}`)));
			}),
	};
}

async function takenPort(): Promise<number> {
	blocker = createServer();
	await new Promise<void>((resolve) => blocker!.listen(0, "127.0.0.1", resolve));
	return (blocker.address() as AddressInfo).port;
}

/** What `dynamo mocker` needs of a model. */
function tokenizerFolder(): string {
	const vocab = Object.fromEntries([..."abcdefghijklmnopqrstuvwxyz"].map((letter, id) => [letter, id]));
	const tokenizer = { version: "1.0", model: { type: "BPE", vocab, merges: [] }, added_tokens: [], decoder: null };
	writeFileSync(join(folder, "tokenizer.json"), JSON.stringify(tokenizer));
	writeFileSync(join(folder, "config.json"), '{"model_type":"llama","max_position_embeddings":512}');
	writeFileSync(
		join(folder, "tokenizer_config.json"),
		'{"chat_template":"{% for m in messages %}{{ m.content }}{% endfor %}"}',
	);
	return folder;
}

const GGUF = process.env.DYNAMO_TEST_MODEL_GGUF;

describe.skipIf(!BUILT || GGUF === undefined)("a real model (needs DYNAMO_TEST_MODEL_GGUF)", () => {
	test("serve: a question, its answer, Ctrl-C; then chat", { timeout: 120_000 }, async () => {
		const args = [GGUF!, "--quantization", "int8", "--model-name", "it's"];
		const serve = run(["serve", ...args, "--http-port", "0"], { DYN_LOG: "error" });
		const [, url] = await serve.says(/^it's is ready at (\S+) after/);
		const [, line] = await serve.says(/\n {2}(curl .*)\n/);
		expect(line).toContain(`${url}/v1/chat/completions`);
		const body = JSON.parse(line!.slice(line!.indexOf("-d '") + 4, -1).replaceAll("'\\''", "'"));
		const response = await fetch(`${url}/v1/chat/completions`, {
			method: "POST",
			headers: { "content-type": "application/json" },
			body: JSON.stringify({ ...body, temperature: 0, max_tokens: 20 }),
		});
		const answer = (await response.json()) as { choices: { message: { content: string } }[] };
		expect(answer.choices[0]?.message.content).toContain("Paris");

		const chat = run(["chat", "--url", url!, "--temperature", "0"]);
		chat.child.stdin!.end("What is the capital of France?\n/exit\n");
		expect(await chat.ended).toBe(0);
		expect(chat.stdout()).toContain("Paris");

		serve.child.kill("SIGINT");
		expect(await serve.ended).toBe(0);
	});

	test("serve --disagg: one worker computes the prompt, another the answer", { timeout: 120_000 }, async () => {
		const args = [GGUF!, "--quantization", "int8", "--model-name", "pair", "--disagg", "--http-port", "0"];
		const serve = run(["serve", ...args], { DYN_LOG: "error" });
		const [, url] = await serve.says(/^pair is ready at (\S+) after/);
		const response = await fetch(`${url}/v1/chat/completions`, {
			method: "POST",
			headers: { "content-type": "application/json" },
			body: JSON.stringify({
				model: "pair",
				messages: [{ role: "user", content: "What is the capital of France?" }],
				temperature: 0,
				max_tokens: 20,
				nvext: { extra_fields: ["worker_id"] },
			}),
		});
		const text = await response.text();
		expect(text).toContain("Paris");
		const [prefill, decode] = ["prefill", "decode"].map(
			(role) => new RegExp(`"${role}_worker_id":(\\d+)`).exec(text)?.[1],
		);
		expect([prefill === undefined, prefill === decode]).toEqual([false, false]);
		serve.child.kill("SIGINT");
		expect(await serve.ended).toBe(0);
	});
});

describe.skipIf(!BUILT)("the command (needs npm run setup)", () => {
	test.each(Object.keys(COMMANDS))("%s --help", async (name) => {
		const { ended, stdout, stderr } = run([name, "--help"]);
		expect(await ended).toBe(0);
		expect(stdout()).toMatch(new RegExp(`^usage: dynamo ${name} `));
		expect(stderr()).toBe("");
	});

	test("--help, --version, help COMMAND", async () => {
		const help = run(["--help"]);
		const version = run(["--version"]);
		const serve = run(["help", "serve"]);
		expect(await Promise.all([help.ended, version.ended, serve.ended])).toEqual([0, 0, 0]);
		for (const name of Object.keys(COMMANDS)) expect(help.stdout()).toContain(`\n  ${name} `);
		expect(version.stdout()).toMatch(/^dynamo \d+\.\d+\.\d+\n$/);
		expect(serve.stdout()).toContain("--http-port");
	});

	test.each([
		[["sevre"], 2, /^dynamo: unknown command sevre; did you mean dynamo serve\?/],
		[["serve", "--http-prt", "1"], 2, /^dynamo: unknown flag --http-prt; did you mean --http-port\?/],
		[["serve", "--http-port", "x"], 2, /^dynamo: --http-port: "x" is not valid/],
		[["serve", "./nothing"], 1, /^dynamo: there is no model at .*nothing: give a folder/],
		[["serve"], 1, /^dynamo: the model smollm2-135m is not on this machine, and HF_HUB_OFFLINE is set/],
		[
			["frontend", "--discovery-backend", "file", "--router-mode", "guess"],
			2,
			/^dynamo: --router-mode: "guess" is not valid.*device-aware-weighted/,
		],
		[
			["mocker", "--discovery-backend", "file", "--model-path", "."],
			1,
			/^dynamo: .* is not a model folder: it has no config/,
		],
		[["chat", "--url", "http://127.0.0.1:1"], 1, /^dynamo: no server answers at http:\/\/127\.0\.0\.1:1: start one/],
	] as [string[], number, RegExp][])("%j: one line and exit code %i", async (args, code, message) => {
		const { ended, stderr, stdout } = run(args);
		expect(await ended).toBe(code);
		expect(stderr()).toMatch(message);
		expect(stderr().trim().split("\n")).toHaveLength(1);
		expect(stdout()).toBe("");
	});

	test("etcd that is not there, by default: one line with both cures, at once and at the end", async () => {
		const env = { ETCD_ENDPOINTS: "http://127.0.0.1:1", ETCD_STARTUP_CONNECT_TIMEOUT_SECONDS: "1" };
		const cures =
			/etcd at http:\/\/127\.0\.0\.1:1 cannot be reached: start it \(.*compose.*\), or set DYN_DISCOVERY_BACKEND=file/;
		for (const command of ["frontend", "mocker"]) {
			const model = command === "mocker" ? ["--model-path", tokenizerFolder()] : [];
			const { ended, stderr } = run([command, ...model], env);
			expect(await ended).toBe(1);
			const [first, ...lines] = stderr().trim().split("\n");
			expect(first).toMatch(/OpenTelemetry OTLP export disabled/);
			expect(lines).toHaveLength(2);
			for (const line of lines) expect(line).toMatch(cures);
			expect(lines[1]).toMatch(/^dynamo: etcd .*ECONNREFUSED/);
		}
	});

	test("a signal while etcd is waited for ends the process", async () => {
		const { child, ended, stderr } = run(["frontend"], { ETCD_ENDPOINTS: "http://127.0.0.1:1" });
		await vi.waitFor(() => expect(stderr()).toMatch(/It is tried for 120 s/), 10_000);
		child.kill("SIGTERM");
		expect(await ended).toBe(143);
	});

	test("the stack only for who asks for it", async () => {
		const { ended, stderr } = run(["serve", "./nothing"], { DYN_LOG: "debug" });
		expect(await ended).toBe(1);
		expect(stderr()).toMatch(/\n\s+at /);
	});

	test("a taken port: port, flag and variable", async () => {
		const port = await takenPort();
		const args = ["frontend", "--discovery-backend", "file", "--http-host", "127.0.0.1"];
		const { ended, stderr } = run([...args, "--http-port", String(port)], { DYN_LOG: "error" });
		expect(await ended).toBe(1);
		expect(stderr()).toBe(
			`dynamo: port ${port} is taken by another process: choose another with --http-port (or DYN_HTTP_PORT)\n`,
		);
	});

	test("a taken system port", async () => {
		const port = await takenPort();
		const { ended, stderr } = run(["frontend", "--discovery-backend", "file", "--http-port", "0"], {
			DYN_LOG: "error",
			DYN_SYSTEM_PORT: String(port),
			DYN_SYSTEM_HOST: "127.0.0.1",
		});
		expect(await ended).toBe(1);
		expect(stderr()).toBe(`dynamo: port ${port} is taken by another process: choose another with DYN_SYSTEM_PORT\n`);
	});

	test.each(["SIGINT", "SIGTERM"] as const)("frontend and simulated worker: a request, then %s", async (signal) => {
		const model = tokenizerFolder();
		const common = ["--discovery-backend", "file"];
		const frontend = run(["frontend", ...common, "--http-host", "127.0.0.1", "--http-port", "0"], { DYN_LOG: "error" });
		const mocker = run(
			["mocker", ...common, "--model-path", model, "--model-name", "m", "--speedup-ratio", "100", "--num-workers", "2"],
			{ DYN_LOG: "error" },
		);
		const [, url] = await frontend.says(/listens at (\S+)\n/);
		await mocker.says(/2 simulated workers serve m\n/);
		expect(readdirSync(join(folder, "kv", "v1", "mdc")).filter((name) => !name.startsWith("."))).toHaveLength(2);

		const listed = async (): Promise<unknown> => (await (await fetch(`${url}/v1/models`)).json()) as unknown;
		for (let models = await listed(); !JSON.stringify(models).includes('"m"'); models = await listed()) {
			await new Promise((resolve) => setTimeout(resolve, 20));
		}
		const response = await fetch(`${url}/v1/chat/completions`, {
			method: "POST",
			headers: { "content-type": "application/json" },
			body: JSON.stringify({ model: "m", messages: [{ role: "user", content: "abc" }], max_tokens: 4 }),
		});
		expect(response.status).toBe(200);
		const body = (await response.json()) as { usage: unknown; choices: { finish_reason: string }[] };
		expect(body.usage).toMatchObject({ prompt_tokens: 3, completion_tokens: 4 });
		expect(body.choices[0]?.finish_reason).toBe("length");

		mocker.child.kill(signal);
		expect(await mocker.ended).toBe(0);
		expect(readdirSync(join(folder, "kv", "v1", "mdc"))).toEqual([]);
		frontend.child.kill(signal);
		expect(await frontend.ended).toBe(0);
		expect(mocker.stderr()).toBe("");
	});

	test("Ctrl-C before it is ready", async () => {
		const args = ["mocker", "--discovery-backend", "file", "--model-path", tokenizerFolder(), "--startup-time", "60"];
		const mocker = run(args, { DYN_LOG: "dynamo=debug,error" });
		await new Promise<void>((resolve) => {
			mocker.child.stderr!.on("data", () => {
				if (mocker.stderr().includes("runtime started")) resolve();
			});
		});
		mocker.child.kill("SIGINT");
		expect(await mocker.ended).toBe(130);
	});

	test("a second Ctrl-C ends at once", async () => {
		const model = tokenizerFolder();
		const mocker = run(
			["mocker", "--discovery-backend", "file", "--model-path", model, "--model-name", "m"],
			// A grace time that nobody would wait for.
			{ DYN_LOG: "error", DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS: "600" },
		);
		await mocker.says(/serves m\n/);
		mocker.child.kill("SIGINT");
		// The first one has been taken when the worker has left discovery.
		while (readdirSync(join(folder, "kv", "v1", "mdc")).length > 0) {
			await new Promise((resolve) => setTimeout(resolve, 10));
		}
		mocker.child.kill("SIGINT");
		expect(await mocker.ended).toBe(130);
	});

	test("doctor reports and ends", async () => {
		const doctor = run(["doctor"], { ETCD_ENDPOINTS: "http://127.0.0.1:1", NATS_SERVER: "nats://127.0.0.1:1" });
		expect(await doctor.ended).toBe(0);
		expect(doctor.stdout()).toMatch(/^ok {4}Node /);
		expect(doctor.stdout()).toMatch(/warn {2}default model smollm2-135m is not here yet; `dynamo pull`/);
		expect(doctor.stdout()).toMatch(/0 failed/);
	});
});
