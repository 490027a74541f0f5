// SPDX-License-Identifier: Apache-2.0
import { createServer } from "node:net";

/** Below 32768: real Dynamo processes read their system port as a signed 16-bit number. */
const FIRST = 12_000;
const PORTS_PER_SLICE = 1000;
const SLICES = 20;

/**
 * Test files that run at the same time have other numbers here, so that none is given a port that another was given;
 * so have, most of the time, those of two runs.
 */
const slice = (process.ppid + Number(process.env.VITEST_POOL_ID ?? 0)) % SLICES;
let next = Math.floor(Math.random() * PORTS_PER_SLICE);

/**
 * A TCP port of 127.0.0.1 that nobody listened on just now, and that was not given to anybody for long.
 * @throws Error when no port of this process's share was free.
 */
export async function freePort(): Promise<number> {
	for (let attempt = 0; attempt < PORTS_PER_SLICE; attempt++) {
		const port = FIRST + slice * PORTS_PER_SLICE + next;
		next = (next + 1) % PORTS_PER_SLICE;
		if (await isFree(port)) return port;
	}
	throw new Error(`no free port between ${FIRST + slice * PORTS_PER_SLICE} and ${PORTS_PER_SLICE - 1} more`);
}

function isFree(port: number): Promise<boolean> {
	return new Promise((resolve) => {
		const server = createServer();
		server.once("error", () => resolve(false));
		server.listen(port, "127.0.0.1", () => server.close(() => resolve(true)));
	});
}
