// SPDX-License-Identifier: Apache-2.0
import { crc32, deflateRawSync } from "node:zlib";

export interface ZipMember {
	readonly name: string;
	readonly data: Buffer;
	readonly deflate: boolean;
	/** Write sizes and offset in the ZIP64 extra field. */
	readonly zip64?: boolean;
}

/** A ZIP archive; `comment` stands after the end record. */
export function makeZip(members: readonly ZipMember[], comment = ""): Buffer {
	const parts: Buffer[] = [];
	const directory: Buffer[] = [];
	let offset = 0;
	for (const { name, data, deflate, zip64 } of members) {
		const packed = deflate ? deflateRawSync(data) : data;
		const title = Buffer.from(name);
		const local = Buffer.alloc(30);
		local.writeUInt32LE(0x04034b50, 0);
		local.writeUInt16LE(20, 4);
		local.writeUInt16LE(deflate ? 8 : 0, 8);
		local.writeUInt32LE(crc32(data), 14);
		local.writeUInt32LE(packed.length, 18);
		local.writeUInt32LE(data.length, 22);
		local.writeUInt16LE(title.length, 26);
		local.writeUInt16LE(4, 28);
		const localExtra = Buffer.from([0xfe, 0xca, 0, 0]);
		const extra = Buffer.alloc(zip64 ? 28 : 0);
		if (zip64) {
			extra.writeUInt16LE(1, 0);
			extra.writeUInt16LE(24, 2);
			extra.writeBigUInt64LE(BigInt(data.length), 4);
			extra.writeBigUInt64LE(BigInt(packed.length), 12);
			extra.writeBigUInt64LE(BigInt(offset), 20);
		}
		const central = Buffer.alloc(46);
		central.writeUInt32LE(0x02014b50, 0);
		central.writeUInt16LE(deflate ? 8 : 0, 10);
		central.writeUInt32LE(crc32(data), 16);
		central.writeUInt32LE(zip64 ? 0xffffffff : packed.length, 20);
		central.writeUInt32LE(zip64 ? 0xffffffff : data.length, 24);
		central.writeUInt16LE(title.length, 28);
		central.writeUInt16LE(extra.length, 30);
		central.writeUInt32LE(zip64 ? 0xffffffff : offset, 42);
		directory.push(central, title, extra);
		parts.push(local, title, localExtra, packed);
		offset += 30 + title.length + 4 + packed.length;
	}
	const central = Buffer.concat(directory);
	const end = Buffer.alloc(22);
	end.writeUInt32LE(0x06054b50, 0);
	end.writeUInt16LE(members.length, 8);
	end.writeUInt16LE(members.length, 10);
	end.writeUInt32LE(central.length, 12);
	end.writeUInt32LE(offset, 16);
	end.writeUInt16LE(Buffer.byteLength(comment), 20);
	return Buffer.concat([...parts, central, end, Buffer.from(comment)]);
}
