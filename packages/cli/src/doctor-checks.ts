// SPDX-License-Identifier: Apache-2.0
import { existsSync, readdirSync, readFileSync, readlinkSync, statSync } from "node:fs";
import { mkdir, rm, statfs, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { connect, createServer } from "node:net";
import { availableParallelism, freemem, tmpdir, totalmem } from "node:os";
import { join } from "node:path";
import { ENV } from "@dynamo-ts/protocols/internal";
import { ALIASES, DEFAULT_ALIAS } from "./models/aliases.js";
import { cacheDirs, cudaLibraryDirs } from "./models/cache-dirs.js";
import { findCached } from "./models/hub.js";
import { bytesText } from "./models/progress.js";
import { wheelFile } from "./models/wheel.js";

export interface DoctorContext {
	readonly env: Readonly<Record<string, string | undefined>>;
	/** Where `serve` would listen. */
	readonly host: string;
	readonly port: number;
}

/** One line of the report. "warn": works, or is not needed for everything; "fail": serving will not work. */
export interface DoctorResult {
	readonly level: "ok" | "warn" | "fail";
	readonly text: string;
	/** What to do about it. */
	readonly cure?: string | undefined;
}

type DoctorCheck = (context: DoctorContext) => Promise<DoctorResult> | DoctorResult;

const ok = (text: string): DoctorResult => ({ level: "ok", text });
const warn = (text: string, cure: string): DoctorResult => ({ level: "warn", text, cure });
const fail = (text: string, cure: string): DoctorResult => ({ level: "fail", text, cure });

const GB = 1_000_000_000;
const CONNECT_TIMEOUT_MS = 1000;

/** All checks in the order of the report. */
export const DOCTOR_CHECKS: readonly DoctorCheck[] = [
	nodeVersion,
	processors,
	httpPort,
	onnxRuntime,
	cuda,
	defaultModel,
	cacheFolder,
	fileDiscovery,
	inotify,
	openFiles,
	etcd,
	nats,
];

function nodeVersion(): DoctorResult {
	const [major = 0, minor = 0] = process.versions.node.split(".").map(Number);
	if (major > 20 || (major === 20 && minor >= 19)) return ok(`Node ${process.versions.node}`);
	return fail(`Node ${process.versions.node} is too old`, "install Node 20.19 or newer");
}

function processors(): DoctorResult {
	const text = `${availableParallelism()} cores, ${bytesText(freemem())} of ${bytesText(totalmem())} memory free`;
	return freemem() < GB ? warn(text, "the default model needs about 0.5 GB; close something") : ok(text);
}

async function httpPort({ host, port }: DoctorContext): Promise<DoctorResult> {
	const problem = await new Promise<NodeJS.ErrnoException | undefined>((resolve) => {
		const server = createServer();
		server.once("error", resolve);
		server.listen({ host, port }, () => server.close(() => resolve(undefined)));
	});
	if (problem === undefined) return ok(`port ${port} on ${host} is free`);
	if (problem.code === "EADDRINUSE") {
		return warn(
			`port ${port} on ${host} is taken (by a running server?)`,
			`choose another with --http-port (or ${ENV.DYN_HTTP_PORT})`,
		);
	}
	return fail(
		`cannot listen on ${host}:${port} (${problem.code})`,
		`choose others with --http-host and --http-port (or ${ENV.DYN_HTTP_HOST}, ${ENV.DYN_HTTP_PORT})`,
	);
}

interface OnnxRuntimeModule {
	listSupportedBackends(): { name: string; bundled: boolean }[];
	readonly env?: { readonly versions?: Readonly<Record<string, string | undefined>> };
}

function onnxRuntime(): DoctorResult {
	try {
		const here = createRequire(import.meta.url);
		// As the engine sees it: its dependencies are not those of this package.
		const engine = createRequire(here.resolve("@dynamo-ts/engine"));
		engine("koffi");
		const { listSupportedBackends, env } = engine("onnxruntime-node") as OnnxRuntimeModule;
		const providers = listSupportedBackends().map(({ name }) => name);
		return ok(`ONNX Runtime ${env?.versions?.node ?? ""} loads; execution providers: ${providers.join(", ")}`);
	} catch (error) {
		return fail(
			`ONNX Runtime does not load (${(error as Error).message.split("\n")[0]})`,
			"install again with npm run setup; on Linux it needs glibc 2.28 or newer",
		);
	}
}

/** In a process of its own: a broken driver may end the one that asks. */
async function cuda({ env }: DoctorContext): Promise<DoctorResult> {
	const folders = cudaLibraryDirs(env);
	const given = env[ENV.ORT_LIB_DIR] !== undefined && env[ENV.ORT_LIB_DIR] !== "";
	if (!given && !existsSync(folders[0]!)) {
		return ok(`CUDA: not set up (no ${folders[0]}, and ${ENV.ORT_LIB_DIR} is not set); models run on the CPU`);
	}
	const { probeCuda } = await import("@dynamo-ts/engine/internal");
	const { usable, steps, reason, cure } = await probeCuda(folders, { ...env });
	const done = steps.length === 0 ? "" : ` (${steps.join("; ")})`;
	return usable
		? ok(`CUDA can be used${done}`)
		: warn(`CUDA cannot be used: ${reason}${done}`, cure ?? "see docs/gpu.md");
}

async function defaultModel({ env }: DoctorContext): Promise<DoctorResult> {
	const alias = ALIASES.find(({ name }) => name === DEFAULT_ALIAS)!;
	const gguf = wheelFile(alias.wheel, join(cacheDirs(env).models, alias.name));
	if (existsSync(gguf)) return ok(`default model ${alias.name}: ${gguf} (${bytesText(statSync(gguf).size)})`);
	const folder = await findCached({ repo: alias.hub, file: undefined }, env, true);
	if (folder !== undefined) return ok(`default model ${alias.name}: ${folder}`);
	return warn(
		`default model ${alias.name} is not here yet`,
		"`dynamo pull` gets it, and so does the first `dynamo serve`",
	);
}

async function cacheFolder({ env }: DoctorContext): Promise<DoctorResult> {
	const { root } = cacheDirs(env);
	const problem = await tryToWrite(root);
	if (problem !== undefined) {
		return fail(`cannot write to ${root} (${problem})`, `set ${ENV.DYN_CACHE_DIR} to a folder that you may write to`);
	}
	const { bavail, bsize } = await statfs(root);
	const text = `${bytesText(bavail * bsize)} free for models and graphs in ${root}`;
	return bavail * bsize < GB ? warn(text, `make room, or set ${ENV.DYN_CACHE_DIR} to a larger disk`) : ok(text);
}

async function fileDiscovery({ env }: DoctorContext): Promise<DoctorResult> {
	const root = env[ENV.DYN_FILE_KV] || join(tmpdir(), "dynamo_store_kv");
	const problem = await tryToWrite(root);
	if (problem === undefined) return ok(`file discovery: ${root} can be written`);
	return warn(`file discovery: cannot write to ${root} (${problem})`, `set ${ENV.DYN_FILE_KV} to a folder of your own`);
}

async function tryToWrite(folder: string): Promise<string | undefined> {
	const probe = join(folder, `.doctor-${process.pid}`);
	try {
		await mkdir(folder, { recursive: true });
		await writeFile(probe, "");
		await rm(probe);
		return undefined;
	} catch (error) {
		return (error as NodeJS.ErrnoException).code ?? (error as Error).message;
	}
}

/** Each process with file discovery watches folders; one of Dynamo's own takes about a dozen instances. */
function inotify(): DoctorResult {
	const limit = readNumber("/proc/sys/fs/inotify/max_user_instances");
	if (limit === undefined) return ok("inotify limits: not of this system");
	const used = countInotifyInstances();
	const text = `inotify instances: ${used} of ${limit} in use`;
	if (limit - used >= 24) return ok(text);
	return warn(text, "raise it: sysctl fs.inotify.max_user_instances=1024");
}

function countInotifyInstances(): number {
	let count = 0;
	for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
		try {
			if (statSync(`/proc/${pid}`).uid !== process.getuid?.()) continue;
			for (const fd of readdirSync(`/proc/${pid}/fd`)) {
				if (readlinkSync(`/proc/${pid}/fd/${fd}`) === "anon_inode:inotify") count++;
			}
		} catch {
			// The process, or one of its files, is gone in the meantime.
		}
	}
	return count;
}

function openFiles(): DoctorResult {
	let limits: string;
	try {
		limits = readFileSync("/proc/self/limits", "utf8");
	} catch {
		return ok("limit of open files: not known on this system");
	}
	const soft = Number(/^Max open files\s+(\d+)/m.exec(limits)?.[1] ?? Number.NaN);
	if (Number.isNaN(soft) || soft >= 4096) return ok(`limit of open files: ${Number.isNaN(soft) ? "none" : soft}`);
	return warn(`limit of open files: ${soft}`, "each stream takes one or two; raise it with ulimit -n 65536");
}

function readNumber(path: string): number | undefined {
	try {
		return Number(readFileSync(path, "utf8"));
	} catch {
		return undefined;
	}
}

/** `frontend` and `worker` need it unless they are told to use another backend; `serve` needs none. */
async function etcd({ env }: DoctorContext): Promise<DoctorResult> {
	const backend = env[ENV.DYN_DISCOVERY_BACKEND] || "etcd";
	if (backend !== "etcd") return ok(`etcd is not used: ${ENV.DYN_DISCOVERY_BACKEND}=${backend}`);
	const { readEtcdConfig, EnvReader } = await import("@dynamo-ts/runtime/internal");
	let endpoints: readonly string[];
	try {
		({ endpoints } = readEtcdConfig(new EnvReader(env)));
	} catch (error) {
		return fail((error as Error).message, `see ${ENV.ETCD_ENDPOINTS} in docs/configuration.md`);
	}
	const problems: string[] = [];
	for (const endpoint of endpoints) {
		const { hostname, port } = new URL(endpoint);
		const problem = await tryToConnect(hostname.replace(/^\[|\]$/g, ""), Number(port || "443"));
		if (problem === undefined) return ok(`etcd is reachable at ${endpoint}`);
		problems.push(`${endpoint}: ${problem}`);
	}
	return warn(
		`etcd is not reachable (${problems.join(", ")}); frontend and worker need it, serve does not`,
		`start it (docker compose -f deploy/docker-compose.yml up -d etcd), or set ${ENV.DYN_DISCOVERY_BACKEND}=file for every process`,
	);
}

async function nats({ env }: DoctorContext): Promise<DoctorResult> {
	return service(
		"NATS",
		(env[ENV.NATS_SERVER] || "nats://localhost:4222").split(",")[0]!.trim(),
		4222,
		ENV.NATS_SERVER,
	);
}

/** Not needed: `serve` and the TCP request plane run without. */
async function service(name: string, endpoint: string, defaultPort: number, variable: string): Promise<DoctorResult> {
	let url: URL;
	try {
		url = new URL(endpoint.includes("://") ? endpoint : `tcp://${endpoint}`);
	} catch {
		return warn(`${name}: ${variable}=${endpoint} is not an address`, "write it as host:port");
	}
	const problem = await tryToConnect(url.hostname.replace(/^\[|\]$/g, ""), Number(url.port || defaultPort));
	if (problem === undefined) return ok(`${name} is reachable at ${endpoint} (this version does not use it)`);
	return ok(`${name} at ${endpoint} is not reachable (${problem}); this version does not need it`);
}

function tryToConnect(host: string, port: number): Promise<string | undefined> {
	return new Promise((resolve) => {
		const socket = connect({ host, port, timeout: CONNECT_TIMEOUT_MS });
		const done = (problem: string | undefined): void => {
			socket.destroy();
			resolve(problem);
		};
		socket.once("connect", () => done(undefined));
		socket.once("timeout", () => done("no answer"));
		socket.once("error", (error: NodeJS.ErrnoException) => done(error.code ?? error.message));
	});
}
