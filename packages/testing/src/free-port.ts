// SPDX-License-Identifier: Apache-2.0
import { createServer } from "node:net";

/**
 * A TCP port of 127.0.0.1 that nobody listened on just now, below 32768: real Dynamo processes read
 * their system port as a signed 16-bit number.
 * @throws Error when none of 200 random ports was free.
 */
export async function freePort(): Promise<number> {
	for (let attempt = 0; attempt < 200; attempt++) {
		const port = 12_000 + Math.floor(Math.random() * 20_000);
		if (await isFree(port)) return port;
	}
	throw new Error("no free port between 12000 and 32000");
}

function isFree(port: number): Promise<boolean> {
	return new Promise((resolve) => {
		const server = createServer();
		server.once("error", () => resolve(false));
		server.listen(port, "127.0.0.1", () => server.close(() => resolve(true)));
	});
}
