// SPDX-License-Identifier: Apache-2.0
// Just enough of ZIP to take one member out of a wheel: central directory, ZIP64, stored and deflated data.
import { type FileHandle, open } from "node:fs/promises";
import { Readable } from "node:stream";
import { createInflateRaw } from "node:zlib";
import { CliError } from "../cli-error.js";

/** A member as the central directory describes it; sizes and offsets in bytes. */
export interface ZipEntry {
	readonly name: string;
	/** 0 stored, 8 deflated. */
	readonly method: number;
	readonly compressedSize: number;
	readonly size: number;
	/** CRC-32 of the content. */
	readonly crc32: number;
	readonly headerOffset: number;
}

const END_SIGNATURE = 0x06054b50;
const END64_LOCATOR_SIGNATURE = 0x07064b50;
const END64_SIGNATURE = 0x06064b50;
const CENTRAL_SIGNATURE = 0x02014b50;
const LOCAL_SIGNATURE = 0x04034b50;
const END_SIZE = 22;
const MAX_COMMENT = 0xffff;
const UNKNOWN_32 = 0xffffffff;
/** A central directory of a sane archive is smaller. */
const MAX_DIRECTORY = 64 * 1024 * 1024;

/** An open archive. */
export class ZipReader {
	readonly path: string;
	readonly entries: readonly ZipEntry[];
	readonly #file: FileHandle;

	private constructor(path: string, file: FileHandle, entries: readonly ZipEntry[]) {
		this.path = path;
		this.#file = file;
		this.entries = entries;
	}

	/** @throws CliError when the file is not a whole ZIP archive. */
	static async open(path: string): Promise<ZipReader> {
		const file = await open(path, "r");
		try {
			return new ZipReader(path, file, await readDirectory(path, file));
		} catch (error) {
			await file.close();
			throw error;
		}
	}

	/**
	 * The content of a member, as it is read and inflated. Neither its size nor its checksum is verified here.
	 * @throws CliError for a member that is encrypted or packed in another way.
	 */
	async read(entry: ZipEntry): Promise<Readable> {
		if (entry.method !== 0 && entry.method !== 8) {
			throw new CliError(`${this.path}: ${entry.name} is packed by method ${entry.method}; only 0 and 8 are known`);
		}
		const header = await readAt(this.#file, entry.headerOffset, 30, this.path);
		if (header.readUInt32LE(0) !== LOCAL_SIGNATURE) throw notZip(this.path, `no member at byte ${entry.headerOffset}`);
		if ((header.readUInt16LE(6) & 1) !== 0) throw new CliError(`${this.path}: ${entry.name} is encrypted`);
		const start = entry.headerOffset + 30 + header.readUInt16LE(26) + header.readUInt16LE(28);
		if (entry.compressedSize === 0) return Readable.from([]);
		const raw = this.#file.createReadStream({
			start,
			end: start + entry.compressedSize - 1,
			autoClose: false,
			highWaterMark: 1024 * 1024,
		});
		if (entry.method === 0) return raw;
		const inflate = createInflateRaw();
		raw.on("error", (error) => inflate.destroy(error));
		return raw.pipe(inflate);
	}

	async close(): Promise<void> {
		await this.#file.close();
	}
}

function notZip(path: string, why: string): CliError {
	return new CliError(`${path} is not a whole ZIP archive: ${why}`);
}

async function readAt(file: FileHandle, offset: number, length: number, path: string): Promise<Buffer> {
	const buffer = Buffer.alloc(length);
	let filled = 0;
	while (filled < length) {
		const { bytesRead } = await file.read(buffer, filled, length - filled, offset + filled);
		if (bytesRead === 0) throw notZip(path, `it ends at byte ${offset + filled}`);
		filled += bytesRead;
	}
	return buffer;
}

async function readDirectory(path: string, file: FileHandle): Promise<ZipEntry[]> {
	const { size } = await file.stat();
	if (size < END_SIZE) throw notZip(path, "it is too short");
	const tailLength = Math.min(size, END_SIZE + MAX_COMMENT);
	const tail = await readAt(file, size - tailLength, tailLength, path);
	let at = tailLength - END_SIZE;
	while (at >= 0 && tail.readUInt32LE(at) !== END_SIGNATURE) at--;
	if (at < 0) throw notZip(path, "it has no end record");
	let count = tail.readUInt16LE(at + 10);
	let directorySize = tail.readUInt32LE(at + 12);
	let directoryOffset = tail.readUInt32LE(at + 16);
	if (count === 0xffff || directorySize === UNKNOWN_32 || directoryOffset === UNKNOWN_32) {
		if (at < 20 || tail.readUInt32LE(at - 20) !== END64_LOCATOR_SIGNATURE) throw notZip(path, "no ZIP64 record");
		const end64 = await readAt(file, Number(tail.readBigUInt64LE(at - 12)), 56, path);
		if (end64.readUInt32LE(0) !== END64_SIGNATURE) throw notZip(path, "no ZIP64 record");
		count = Number(end64.readBigUInt64LE(32));
		directorySize = Number(end64.readBigUInt64LE(40));
		directoryOffset = Number(end64.readBigUInt64LE(48));
	}
	if (directorySize > MAX_DIRECTORY || directoryOffset + directorySize > size) {
		throw notZip(path, "its directory is outside the file");
	}
	return parseDirectory(path, await readAt(file, directoryOffset, directorySize, path), count);
}

function parseDirectory(path: string, directory: Buffer, count: number): ZipEntry[] {
	const entries: ZipEntry[] = [];
	let at = 0;
	for (let i = 0; i < count; i++) {
		if (at + 46 > directory.length || directory.readUInt32LE(at) !== CENTRAL_SIGNATURE) {
			throw notZip(path, `member ${i} of ${count} has no directory entry`);
		}
		const nameLength = directory.readUInt16LE(at + 28);
		const extraLength = directory.readUInt16LE(at + 30);
		const next = at + 46 + nameLength + extraLength + directory.readUInt16LE(at + 32);
		if (next > directory.length) throw notZip(path, `the directory entry of member ${i} is cut`);
		const extra = directory.subarray(at + 46 + nameLength, at + 46 + nameLength + extraLength);
		const wide = zip64Values(extra);
		const value = (offset: number): number => {
			const short = directory.readUInt32LE(at + offset);
			return short === UNKNOWN_32 ? (wide.shift() ?? short) : short;
		};
		// The extra field holds, in this order, only those of the three that did not fit.
		const size = value(24);
		const compressedSize = value(20);
		const headerOffset = value(42);
		entries.push({
			name: directory.toString("utf8", at + 46, at + 46 + nameLength),
			method: directory.readUInt16LE(at + 10),
			crc32: directory.readUInt32LE(at + 16),
			compressedSize,
			size,
			headerOffset,
		});
		at = next;
	}
	return entries;
}

function zip64Values(extra: Buffer): number[] {
	const values: number[] = [];
	let at = 0;
	while (at + 4 <= extra.length) {
		const length = extra.readUInt16LE(at + 2);
		if (extra.readUInt16LE(at) === 1) {
			for (let i = at + 4; i + 8 <= at + 4 + length && i + 8 <= extra.length; i += 8) {
				values.push(Number(extra.readBigUInt64LE(i)));
			}
		}
		at += 4 + length;
	}
	return values;
}
