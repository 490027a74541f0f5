// SPDX-License-Identifier: Apache-2.0
// Loaded into a process under test before its own code (`node --import`): on SIGUSR2 it writes what the process holds,
// as one line on stderr. Part of leak-check.ts; nothing of the product knows of it.
import { createRequire } from "node:module";
import { isMainThread } from "node:worker_threads";
import { LIVE_CLASSES, PROBE_MARK, type ProbeReport } from "./leak-report.js";

/** Becomes the root of all classes that are counted, so that one walk over the heap finds their objects. */
class Counted {}
/** Node's types do not have it yet. Collects garbage first, so what it finds is held by something. */
type QueryObjects = (of: typeof Counted, options: { format: "summary" }) => string[];

let prepared: Promise<void> | undefined;

async function prepare(): Promise<void> {
	for (const [file, ...names] of LIVE_CLASSES) {
		// The module that the process itself uses; one that it does not use has no objects.
		const module = await import(new URL(`../../${file}`, import.meta.url).href);
		for (const name of names) Object.setPrototypeOf(module[name].prototype, Counted.prototype);
	}
}

async function report(): Promise<ProbeReport> {
	prepared ??= prepare();
	await prepared;
	const { queryObjects } = createRequire(import.meta.url)("node:v8") as { queryObjects: QueryObjects };
	const resources: Record<string, number> = {};
	for (const name of process.getActiveResourcesInfo()) resources[name] = (resources[name] ?? 0) + 1;
	const live: Record<string, number> = {};
	for (const text of queryObjects(Counted, { format: "summary" })) {
		const name = text.slice(0, 100).match(/^\w+/)?.[0] ?? text.slice(0, 100);
		live[name] = (live[name] ?? 0) + 1;
	}
	return { resources, live };
}

if (isMainThread) {
	process.on("SIGUSR2", () => {
		report().then(
			(found) => process.stderr.write(`${PROBE_MARK}${JSON.stringify(found)}\n`),
			(error: unknown) => process.stderr.write(`${PROBE_MARK}{"failed":${JSON.stringify(String(error))}}\n`),
		);
	});
}
