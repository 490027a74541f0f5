// SPDX-License-Identifier: Apache-2.0
// Installs the dependencies from the lockfile and builds all packages; does nothing that is done already.
// Runs with nothing but Node and npm: pnpm comes through npx in the version below.
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const PNPM = "12.21.0";
const root = join(dirname(fileURLToPath(import.meta.url)), "..");

const [major, minor] = process.versions.node.split(".").map(Number);
if (major < 20 || (major === 20 && minor < 19)) {
	console.error(`setup: Node ${process.versions.node} is too old; install Node 20.19 or newer`);
	process.exit(1);
}

function run(what, command, args, env = {}) {
	const result = spawnSync(command, args, { cwd: root, stdio: "inherit", env: { ...process.env, ...env } });
	if (result.error || result.status !== 0) {
		console.error(
			`setup: ${what} failed (${result.error?.message ?? `exit code ${result.status}`}); the lines above say why`,
		);
		process.exit(result.status || 1);
	}
}

/** A digest of everything that decides what `pnpm install` would do. */
function wanted() {
	const hash = createHash("sha256").update(PNPM).update(process.platform).update(process.arch);
	const files = ["package.json", "pnpm-lock.yaml", "pnpm-workspace.yaml"];
	for (const name of readdirSync(join(root, "packages")).sort()) files.push(`packages/${name}/package.json`);
	for (const file of files) if (existsSync(join(root, file))) hash.update(file).update(readFileSync(join(root, file)));
	return hash.digest("hex");
}

const stamp = join(root, "node_modules", ".dynamo-setup");
const digest = wanted();
if (!existsSync(stamp) || readFileSync(stamp, "utf8") !== digest) {
	run("installing the dependencies", "npx", ["--yes", `pnpm@${PNPM}`, "install", "--frozen-lockfile"], { CI: "true" });
	writeFileSync(stamp, digest);
}
run("building", process.execPath, [join(root, "node_modules", "typescript", "bin", "tsc"), "-b"]);
