// SPDX-License-Identifier: Apache-2.0
// The side channel against peers of all kinds, with blocks that are plain memory.
import { connect, Socket } from "node:net";
import type { HeldKv, KvFetch, KvLayout, KvPort } from "@dynamo-ts/engine";
import { createLogger } from "@dynamo-ts/runtime";
import { loadTcpTls } from "@dynamo-ts/runtime/internal";
import { CertificateAuthority, findOpenssl, titled, until } from "@dynamo-ts/testing/internal";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { HoldRegistry } from "./hold-registry.js";
import { Puller } from "./puller.js";
import {
	encodeBlockHead,
	encodeFrame,
	FRAME,
	FrameReader,
	PREAMBLE,
	TransferFormatError,
	u16,
	u32,
} from "./transfer-frames.js";
import { TransferServer } from "./transfer-server.js";

const BYTES = 300_000;
const log = createLogger({ filter: "off", format: "readable", ansi: false, localTime: false });

/** An engine whose block i is full of the number i. */
class FakePort implements KvPort {
	readonly layout = { blockBytes: BYTES } as KvLayout;
	readonly kept = new Set<number>();
	readonly readers = new Map<number, number>();
	reads = 0;
	giveUp: (id: number) => void = () => {};
	open(id: number): boolean {
		if (!this.kept.has(id)) return false;
		this.readers.set(id, (this.readers.get(id) ?? 0) + 1);
		return true;
	}
	async read(_id: number, blocks: readonly number[]): Promise<Uint8Array[]> {
		this.reads += blocks.length;
		return blocks.map((block) => new Uint8Array(new SharedArrayBuffer(BYTES)).fill(block));
	}
	close(id: number): void {
		this.readers.set(id, this.readers.get(id)! - 1);
	}
	release(id: number): void {
		this.kept.delete(id);
	}
	onGivenUp(callback: (id: number) => void): void {
		this.giveUp = callback;
	}
	get numReaders(): number {
		return [...this.readers.values()].reduce((sum, count) => sum + count, 0);
	}
}

/** What an engine wants filled. */
class FakeFetch implements KvFetch {
	readonly tokens = 0;
	readonly abort = new AbortController();
	readonly signal = this.abort.signal;
	readonly filled = new Map<number, Uint8Array>();
	readonly complete = new Set<number>();
	constructor(
		readonly firstBlock: number,
		readonly numBlocks: number,
	) {}
	memory(index: number): Uint8Array {
		if (index < this.firstBlock || index >= this.firstBlock + this.numBlocks) throw new RangeError("not wanted");
		const memory = this.filled.get(index) ?? new Uint8Array(BYTES);
		this.filled.set(index, memory);
		return memory;
	}
	written(index: number): void {
		this.complete.add(index);
	}
	finish(): void {}
}

let kv: FakePort;
let holds: HoldRegistry;
let server: TransferServer;
let puller: Puller;
let ids = 0;
const ended: string[] = [];
const sockets: Socket[] = [];

beforeEach(async () => {
	kv = new FakePort();
	ended.length = 0;
	ids = 0;
	holds = new HoldRegistry(kv, 60_000, (outcome) => ended.push(outcome));
	const options = { kv, holds, host: "127.0.0.1", port: 0, tls: undefined, sharedMemory: true, log, onSent() {} };
	server = await TransferServer.listen(options);
	puller = new Puller({ tls: undefined, connectTimeoutMs: 2000 });
});
afterEach(async () => {
	puller.close();
	for (const socket of sockets.splice(0)) socket.destroy();
	await server.close();
	holds.releaseAll();
});

function keep(numBlocks: number): string {
	const id = ++ids;
	kv.kept.add(id);
	const held: HeldKv = { id, tokens: 1, blocks: Array.from({ length: numBlocks }, (_, i) => i) };
	return holds.add(held);
}

function dial(): Promise<Socket> {
	const socket = connect({ host: "127.0.0.1", port: server.port });
	sockets.push(socket);
	socket.on("error", () => {});
	return new Promise((resolve) => socket.once("connect", () => resolve(socket)));
}

function pullFrame(handle: string, first: number, count: number, share = 0): Buffer {
	return encodeFrame(FRAME.pull, Buffer.from(handle, "hex"), u32(first), u32(count), Uint8Array.of(share));
}

const closedOf = (socket: Socket) => new Promise<void>((resolve) => socket.once("close", () => resolve()));

describe.each([
	["tcp", false],
	["shm", true],
] as const)("blocks over %s", (transport, mayShare) => {
	const source = (handle: string) => ({ host: "127.0.0.1", port: server.port, handle, mayShare });

	test("arrive whole and in their places, over one connection again and again", async () => {
		for (const [first, count] of [
			[0, 100],
			[3, 1],
			[10, 37],
		] as const) {
			const fetch = new FakeFetch(first, count);
			const outcome = await puller.pull(source(keep(100)), fetch, BYTES, 10_000);
			expect(outcome).toMatchObject({ failure: undefined, bytes: count * BYTES, transport });
			expect(fetch.complete.size).toBe(count);
			for (const [index, memory] of fetch.filled) expect(memory.every((byte) => byte === index)).toBe(true);
		}
		await until("nothing is kept", () => holds.size === 0);
		expect(ended).toEqual(["pulled", "pulled", "pulled"]);
		expect(kv.kept.size + kv.numReaders).toBe(0);
	});

	test("stop coming when nobody wants them any more, and are kept no longer", async () => {
		const fetch = new FakeFetch(0, 400);
		const pulled = puller.pull(source(keep(400)), fetch, BYTES, 10_000);
		await until("some blocks are there", () => fetch.complete.size > 3);
		fetch.abort.abort();
		expect((await pulled).failure).toBe("lost");
		const had = fetch.complete.size;
		await until("nothing is kept", () => holds.size === 0);
		expect(ended).toEqual(["released"]);
		expect(kv.kept.size + kv.numReaders).toBe(0);
		expect(fetch.complete.size).toBe(had);
		expect(kv.reads).toBeLessThan(400);
	});

	test("are not there for who asks too late, for too many or with another handle", async () => {
		const pull = (handle: string, first: number, count: number) =>
			puller.pull(source(handle), new FakeFetch(first, count), BYTES, 5000);
		expect((await pull("00".repeat(16), 0, 1)).failure).toBe("refused");
		const handle = keep(3);
		expect((await pull(handle, 2, 2)).failure).toBe("refused");
		holds.release(handle, "expired");
		expect((await pull(handle, 0, 1)).failure).toBe("refused");
		const given = keep(3);
		kv.giveUp(ids);
		expect((await pull(given, 0, 1)).failure).toBe("refused");
	});
});

const openssl = findOpenssl().missing;
test.skipIf(openssl)(titled("with certificates, and with none to who has none", openssl), async () => {
	const authority = new CertificateAuthority();
	try {
		const { cert, key } = authority.sign();
		const settings = { certPath: cert, keyPath: key, caPath: authority.ca, insecure: false, handshakeTimeoutMs: 2000 };
		const tls = loadTcpTls(settings, log);
		const common = { kv, holds, host: "127.0.0.1", port: 0, sharedMemory: true, log, onSent() {} };
		const secured = await TransferServer.listen({ ...common, tls: tls.server });
		const secure = new Puller({ tls: tls.client, connectTimeoutMs: 2000 });
		const handle = keep(5);
		const source = { host: "127.0.0.1", port: secured.port, handle, mayShare: false };
		expect((await puller.pull(source, new FakeFetch(0, 5), BYTES, 3000)).failure).toMatch(/lost|timeout/);
		const fetch = new FakeFetch(0, 5);
		expect(await secure.pull(source, fetch, BYTES, 5000)).toMatchObject({ failure: undefined, bytes: 5 * BYTES });
		for (const [index, memory] of fetch.filled) expect(memory.every((byte) => byte === index)).toBe(true);
		secure.close();
		await secured.close();
	} finally {
		authority.remove();
	}
});

test("a release is heard without an answer, and keeps the connection open for longer than pullers keep it", async () => {
	const limited = vi.spyOn(Socket.prototype, "setTimeout");
	try {
		puller.release({ host: "127.0.0.1", port: server.port, handle: keep(2), mayShare: false });
		await until("nothing is kept", () => holds.size === 0);
		expect(ended).toEqual(["released"]);
		const accepted = limited.mock.contexts.find((socket) => (socket as Socket).localPort === server.port) as Socket;
		expect(accepted.timeout).toBe(60_000);
	} finally {
		limited.mockRestore();
	}
});

test("the server closes what does not keep to the format, and goes on", async () => {
	await fc.assert(
		fc.asyncProperty(
			fc.oneof(
				fc.uint8Array({ minLength: 1, maxLength: 200 }).map((bytes) => Buffer.from(bytes)),
				fc
					.record({ type: fc.integer({ min: 0, max: 255 }), payload: fc.uint8Array({ maxLength: 60 }) })
					.map(({ type, payload }) => Buffer.concat([PREAMBLE, encodeFrame(type, payload)])),
				fc.constant(Buffer.concat([PREAMBLE, Buffer.from([0xff, 0xff, 0xff, 0xff, FRAME.pull])])),
				fc.constant(Buffer.concat([PREAMBLE, Buffer.from([0, 0, 0, 0, 0])])),
				fc.constant(Buffer.concat([PREAMBLE, encodeFrame(FRAME.credit, u32(1))])),
			),
			fc.boolean(),
			async (bytes, half) => {
				const socket = await dial();
				const closed = closedOf(socket);
				socket.resume();
				if (half) socket.end(bytes);
				else {
					socket.write(bytes);
					socket.end(Buffer.from("garbage behind it, to be sure that no frame is only half there".repeat(40)));
				}
				await closed;
			},
		),
		{ numRuns: 60 },
	);
	const source = { host: "127.0.0.1", port: server.port, handle: keep(4), mayShare: false };
	expect((await puller.pull(source, new FakeFetch(0, 4), BYTES, 5000)).failure).toBeUndefined();
	expect(kv.numReaders).toBe(0);
});

test("a peer that asks and leaves has not got what was in the way out", async () => {
	const socket = await dial();
	socket.pause();
	socket.write(Buffer.concat([PREAMBLE, pullFrame(keep(20), 0, 20)]));
	await until("blocks are read", () => kv.reads > 0);
	socket.resetAndDestroy();
	await until("nothing is kept", () => holds.size === 0);
	expect(ended).toEqual(["released"]);
});

test("a peer that asks and does not read costs little memory", async () => {
	const socket = await dial();
	socket.pause();
	socket.write(Buffer.concat([PREAMBLE, pullFrame(keep(2000), 0, 2000)]));
	await until("blocks are read", () => kv.reads > 0);
	await new Promise((resolve) => setTimeout(resolve, 100));
	const read = kv.reads;
	await new Promise((resolve) => setTimeout(resolve, 100));
	expect(kv.reads).toBe(read);
	expect(read * BYTES).toBeLessThan(30e6);
	expect(server.active).toBe(1);
	socket.destroy();
	await until("no pull is under way", () => server.active === 0);
	expect(kv.numReaders + kv.kept.size).toBe(0);
});

test("frames are understood however they are cut, and nonsense is refused with little in memory", () => {
	const stream = Buffer.concat([
		encodeFrame(FRAME.accept, u32(5)),
		encodeBlockHead(7, Buffer.from("hello")),
		Buffer.from("hello"),
		encodeFrame(FRAME.piece, u32(9), u16(2)),
		encodeBlockHead(8, Buffer.from("world")),
		Buffer.from("world"),
		encodeFrame(FRAME.done),
	]);
	fc.assert(
		fc.property(fc.array(fc.integer({ min: 1, max: 20 }), { maxLength: 40 }), (cuts) => {
			const seen: string[] = [];
			const blocks = new Map<number, Uint8Array>();
			const reader = new FrameReader(
				{
					onFrame: (type, payload) => seen.push(`${type} ${payload.toString("hex")}`),
					onBlock: (index, bytes) => {
						blocks.set(index, new Uint8Array(bytes));
						return blocks.get(index)!;
					},
					onBlockEnd: (index) => seen.push(Buffer.from(blocks.get(index)!).toString()),
				},
				false,
			);
			let at = 0;
			for (const cut of [...cuts, stream.length]) {
				reader.push(stream.subarray(at, at + cut));
				at += cut;
			}
			expect(seen).toEqual(["129 00000005", "hello", "133 000000090002", "world", "134 "]);
		}),
	);
	fc.assert(
		fc.property(fc.array(fc.uint8Array({ minLength: 1, maxLength: 50 }), { maxLength: 60 }), (chunks) => {
			const reader = new FrameReader(
				{
					onFrame: () => {},
					onBlock: () => {
						throw new TransferFormatError("none is wanted");
					},
				},
				false,
			);
			try {
				for (const chunk of chunks) reader.push(Buffer.from(chunk));
			} catch (error) {
				expect(error).toBeInstanceOf(TransferFormatError);
			}
		}),
	);
});
