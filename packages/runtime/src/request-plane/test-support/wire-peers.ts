// SPDX-License-Identifier: Apache-2.0
// What tests of the request plane's bytes share: raw peers, and readers of what those get.
import { readFileSync } from "node:fs";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";
import { fileURLToPath } from "node:url";
import {
	type Annotated,
	decodeResponseFrame,
	type RequestPlaneCodec,
	TwoPartDecoder,
} from "@dynamo-ts/protocols/internal";
import { createLogger } from "../../observability/logging.js";

export const log = createLogger({ filter: "off", format: "readable", ansi: false, localTime: false });
export const MAX_BYTES = 1024 * 1024;
export const fixture = (name: string) =>
	readFileSync(fileURLToPath(new URL(`../../../fixtures/wire/${name}`, import.meta.url)));

/** What tests have opened, to be closed by `closePeers`. */
export const closers: (() => Promise<void> | void)[] = [];

/** Closes what is open, the last first. */
export async function closePeers(): Promise<void> {
	for (const close of closers.splice(0).reverse()) await close();
}

export async function listen(onConnection: (socket: Socket) => void): Promise<{ server: Server; port: number }> {
	const sockets = new Set<Socket>();
	const server = createServer((socket) => {
		sockets.add(socket);
		socket.on("error", () => {});
		onConnection(socket);
	});
	await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
	closers.push(async () => {
		for (const socket of sockets) socket.destroy();
		await new Promise((resolve) => server.close(resolve));
	});
	return { server, port: (server.address() as AddressInfo).port };
}

export async function dial(port: number): Promise<Socket> {
	const socket = connect({ host: "127.0.0.1", port, noDelay: true });
	socket.on("error", () => {});
	closers.push(() => void socket.destroy());
	await new Promise<void>((resolve, reject) => socket.once("connect", resolve).once("error", reject));
	return socket;
}

/** Everything that comes until the other side ends. */
export function readAll(socket: Socket): Promise<Buffer> {
	const chunks: Buffer[] = [];
	return new Promise((resolve) => {
		socket.on("data", (chunk) => chunks.push(chunk));
		socket.on("close", () => resolve(Buffer.concat(chunks)));
	});
}

export function framesOf(stream: Buffer): { header: Buffer; body: Buffer }[] {
	const frames: { header: Buffer; body: Buffer }[] = [];
	new TwoPartDecoder().push(stream, (header, body) => frames.push({ header, body }));
	return frames;
}

export function itemsOf(stream: Buffer, codec: RequestPlaneCodec): Annotated<unknown>[] {
	const items: Annotated<unknown>[] = [];
	for (const { body } of framesOf(stream)) {
		if (body.length === 0) continue;
		const frame = decodeResponseFrame<unknown>(body, codec);
		if (!frame.complete_final) items.push(frame.data);
	}
	return items;
}
