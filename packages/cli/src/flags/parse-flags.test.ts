// SPDX-License-Identifier: Apache-2.0
import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { CliError } from "../cli-error.js";
import { closest, editDistance } from "./closest.js";
import type { CommandSpec } from "./flag-spec.js";
import { FRONTEND_COMMAND } from "./frontend-flags.js";
import { helpText } from "./help-text.js";
import { MOCKER_COMMAND, SERVE_COMMAND, WORKER_COMMAND } from "./model-flags.js";
import { parseFlags } from "./parse-flags.js";
import { workerRole } from "./role-flags.js";
import { checkPlanes } from "./runtime-flags.js";

function refusal(run: () => unknown): CliError {
	try {
		run();
	} catch (error) {
		if (error instanceof CliError) return error;
		throw error;
	}
	throw new Error("it was accepted");
}

describe("precedence", () => {
	test("flag over variable over default", () => {
		const port = (argv: string[], env: Record<string, string>) => {
			const flags = parseFlags(SERVE_COMMAND, argv, env);
			return [flags.number("http-port"), flags.source("http-port"), flags.env.DYN_HTTP_PORT];
		};
		expect(port([], {})).toEqual([8000, "default", undefined]);
		expect(port([], { DYN_HTTP_PORT: "9000" })).toEqual([9000, "env", "9000"]);
		expect(port(["--http-port", "9001"], { DYN_HTTP_PORT: "9000" })).toEqual([9001, "flag", "9001"]);
		expect(port(["--http-port=9001", "--port", "9002"], {})).toEqual([9002, "flag", "9002"]);
		expect(port([], { DYN_HTTP_PORT: "" })).toEqual([8000, "default", ""]);
	});

	test("a variable that a flag overrides may be wrong", () => {
		expect(parseFlags(SERVE_COMMAND, ["--port", "1"], { DYN_HTTP_PORT: "x" }).number("http-port")).toBe(1);
	});
});

describe("forms", () => {
	test("underscores, =, positionals, --no-", () => {
		const flags = parseFlags(
			MOCKER_COMMAND,
			["--max_model_len=512", "--no-enable-prefix-caching", "--enable-chunked-prefill=false", "--speedup-ratio", "0.5"],
			{},
		);
		expect(flags.number("max-model-len")).toBe(512);
		expect(flags.boolean("enable-prefix-caching")).toBe(false);
		expect(flags.boolean("enable-chunked-prefill")).toBe(false);
		expect(flags.number("speedup-ratio")).toBe(0.5);
		const serve = parseFlags(SERVE_COMMAND, ["--port", "1", "model", "--model-name", "a=b_c"], {});
		expect(serve.positionals).toEqual(["model"]);
		expect(serve.string("model-name")).toBe("a=b_c");
	});

	test("help wins over what is wrong elsewhere", () => {
		expect(parseFlags(SERVE_COMMAND, ["--help", "a", "b", "c"], { DYN_HTTP_PORT: "x" }).help).toBe(true);
		expect(parseFlags(SERVE_COMMAND, ["-h"], {}).help).toBe(true);
	});
});

describe("refusals name what is wrong and what is right", () => {
	test.each([
		[SERVE_COMMAND, ["--http-prt", "1"], {}, /--http-prt; did you mean --http-port\?/],
		[SERVE_COMMAND, ["--xyzzyxyzzy"], {}, /unknown flag --xyzzyxyzzy \(dynamo serve --help/],
		[SERVE_COMMAND, ["--http-port", "70000"], {}, /--http-port: "70000" .* from 0 to 65535/],
		[SERVE_COMMAND, ["--http-port", "1.5"], {}, /"1\.5"/],
		[SERVE_COMMAND, ["--http-port"], {}, /--http-port needs a value/],
		[SERVE_COMMAND, ["--port", "x"], {}, /--port: "x"/],
		[SERVE_COMMAND, [], { DYN_HTTP_PORT: "abc" }, /DYN_HTTP_PORT: "abc" .* from 0 to 65535/],
		[SERVE_COMMAND, ["--quantization", "fp8"], {}, /"fp8" .* auto, none, int8, int4/],
		[SERVE_COMMAND, ["a", "b"], {}, /does not take "b" after MODEL/],
		[FRONTEND_COMMAND, ["model"], {}, /does not take "model"/],
		[MOCKER_COMMAND, ["--speedup-ratio", "-1"], {}, /at least 0/],
		[MOCKER_COMMAND, ["--enable-prefix-caching=maybe"], {}, /true or false/],
		[WORKER_COMMAND, ["--disaggregation-mode", "encode"], {}, /agg.*prefill.*decode/],
		[FRONTEND_COMMAND, ["--enable-anthropic-api"], {}, /--enable-anthropic-api is not in this version/],
		[FRONTEND_COMMAND, [], { DYN_TLS_CERT_PATH: "/x" }, /DYN_TLS_CERT_PATH is not in this version/],
		[FRONTEND_COMMAND, ["--interactive"], {}, /--interactive is not in this version/],
		[FRONTEND_COMMAND, ["--aic-backend", "x"], {}, /--aic-backend is not in this version/],
	] as [CommandSpec, string[], Record<string, string>, RegExp][])("%#", (command, argv, env, message) => {
		const error = refusal(() => parseFlags(command, argv, env));
		expect(error.message).toMatch(message);
		expect(error.message).not.toContain("\n");
		expect(error.exitCode).toBe(2);
	});

	test("asking for the default of what is not there is no error", () => {
		const argv = [
			"--router-kv-events",
			"--no-router-replica-sync",
			"--migration-limit",
			"0",
			"--router-event-threads",
			"4.0",
		];
		parseFlags(FRONTEND_COMMAND, argv, { DYN_ROUTER_QUEUE_THRESHOLD: "None", DYN_ROUTER_TTL_SECS: "120.0" });
		parseFlags(WORKER_COMMAND, ["--disaggregation-mode", "agg", "--tensor-parallel-size", "1"], {});
	});

	test("a worker's role, by either name, and one only", () => {
		const role = (...argv: string[]) => workerRole(parseFlags(WORKER_COMMAND, argv, {}));
		expect(role()).toBe("aggregated");
		expect(role("--is-prefill-worker")).toBe("prefill");
		expect(role("--disaggregation-mode", "prefill", "--is-prefill-worker")).toBe("prefill");
		expect(role("--is-decode-worker")).toBe("decode");
		expect(role("--disaggregation-mode=decode")).toBe("decode");
		expect(refusal(() => role("--is-decode-worker", "--is-prefill-worker")).message).toMatch(/one role/);
		expect(refusal(() => role("--is-decode-worker", "--disaggregation-mode", "agg")).message).toMatch(/one role/);
	});

	test("etcd by default; planes that are not there, with what works instead", () => {
		expect(parseFlags(FRONTEND_COMMAND, [], {}).string("discovery-backend")).toBe("etcd");
		const file = parseFlags(FRONTEND_COMMAND, [], { DYN_DISCOVERY_BACKEND: "file" });
		checkPlanes("frontend", file);
		const quic = parseFlags(FRONTEND_COMMAND, ["--discovery-backend", "file", "--response-plane", "quic"], {});
		expect(refusal(() => checkPlanes("frontend", quic)).message).toMatch(/--response-plane quic.*use tcp/);
	});
});

test("flags without a meaning here give one line each", () => {
	const argv = ["--trust-remote-code", "--load-format", "auto", "--kv-events-config", "{}", "--dtype", "float16"];
	const { notices } = parseFlags(WORKER_COMMAND, argv, {});
	expect(notices).toHaveLength(3);
	for (const notice of notices) expect(notice).toMatch(/^--\S+ has no meaning here: \S/);
});

describe("tables", () => {
	const COMMANDS = [SERVE_COMMAND, WORKER_COMMAND, MOCKER_COMMAND, FRONTEND_COMMAND];

	test.each(COMMANDS)("$name: no flag twice, no variable twice", (command) => {
		const names = command.flags.flatMap(({ flag, aliases }) => [flag, ...(aliases ?? [])]);
		expect(names.filter((name, i) => names.indexOf(name) !== i)).toEqual([]);
		const variables = command.flags.flatMap(({ env }) => (env === undefined ? [] : [env]));
		expect(variables.filter((name, i) => variables.indexOf(name) !== i)).toEqual([]);
	});

	test.each(COMMANDS)("$name: help shows every flag with its variable and default", (command) => {
		const text = helpText(command, 100);
		for (const { flag, env, status } of command.flags) {
			expect(text).toContain(`--${flag}`);
			if (status?.kind === "missing") continue;
			const start = text.search(new RegExp(`^ {2}(-\\w, )?--${flag}[ ,\\n]`, "m"));
			const entry = text
				.slice(start + 2)
				.split(/\n {2}(?=\S)/)[0]!
				.replaceAll(/\s+/g, " ");
			expect(entry).toMatch(env === undefined ? /default: \S/ : new RegExp(`env var: ${env} \\| default: \\S`));
		}
		for (const line of text.split("\n")) {
			// Only what cannot be broken is longer: names and lists of choices.
			if (line.length > 100) expect(line.trim()).toMatch(/^-|^\S+$/);
		}
	});

	/** `--flag` lines of a recorded help text, with variable and default where it tells. */
	function recorded(file: string): Map<string, { env: string | undefined; fallback: string | undefined }> {
		const text = readFileSync(new URL(`../../fixtures/${file}`, import.meta.url), "utf8");
		const options = text.slice(text.indexOf("\noptions:")).replaceAll(/\n {20,}/g, " ");
		const found = new Map<string, { env: string | undefined; fallback: string | undefined }>();
		for (const line of options.split("\n")) {
			const flag = /^ {2}(?:-\w, )?(?:--interactive|--([a-z0-9-]+))/.exec(line);
			if (flag?.[1] === undefined || ["help", "version"].includes(flag[1])) continue;
			// Line breaks of the recording fall inside names too.
			const joined = line.replaceAll(/- (?=[a-z])/g, "-");
			found.set(flag[1], {
				env: /env var: (\w+)/.exec(joined)?.[1],
				fallback: /default: ([^|]*?)(?: deprecating.*)?$/.exec(joined)?.[1]?.trim(),
			});
		}
		return found;
	}

	test("the frontend has every flag of Dynamo's, with the same variable and default", () => {
		const flags = recorded("frontend_help.txt");
		expect(flags.size).toBeGreaterThan(80);
		for (const [name, { env, fallback }] of flags) {
			const spec = FRONTEND_COMMAND.flags.find(({ flag }) => flag === name);
			expect(spec, name).toBeDefined();
			expect(spec?.env, name).toBe(env);
			if (fallback === undefined) continue;
			const own =
				spec?.type === "boolean" ? (spec.default === true ? "True" : "False") : String(spec?.default ?? "None");
			const same = own === fallback || (fallback === "[]" && own === "None") || Number(own) === Number(fallback);
			expect(same, `${name}: ${own} instead of ${fallback}`).toBe(true);
		}
	});

	test("the mocker has every flag of Dynamo's", () => {
		const flags = [...recorded("mocker_help.txt").keys()];
		expect(flags.length).toBeGreaterThan(50);
		const known = new Set(MOCKER_COMMAND.flags.flatMap(({ flag, aliases }) => [flag, ...(aliases ?? [])]));
		// Those with a --no- form are one flag here.
		const missing = flags.filter((name) => !known.has(name) && !known.has(name.replace(/^no-/, "")));
		// A path means nothing on another machine; the others are the frontend's to decide.
		const frontends = [
			"load-aware",
			"router-policy-config",
			"router-conditional-disagg",
			"router-conditional-disagg-config",
		];
		expect(missing.filter((name) => !frontends.includes(name.replace(/^no-/, "")))).toEqual([]);
	});
});

test("closest words", () => {
	expect(editDistance("", "abc")).toBe(3);
	expect(editDistance("abc", "abc")).toBe(0);
	expect(editDistance("kitten", "sitting")).toBe(3);
	expect(editDistance("ab", "ba")).toBe(1);
	expect(closest("serev", ["serve", "worker"])).toBe("serve");
	expect(closest("zzz", ["serve", "worker"])).toBeUndefined();
});
