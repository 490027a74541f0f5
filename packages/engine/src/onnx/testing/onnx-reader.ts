// SPDX-License-Identifier: Apache-2.0
// Reads back what OnnxModel writes: the nodes, constants, inputs and outputs of a ModelProto.

import { closeSync, openSync, readFileSync, readSync } from "node:fs";
import { dirname, join } from "node:path";

/** An attribute's value: i, f, s or ints. */
export type ReadAttribute = number | string | readonly number[];

export interface ReadNode {
	readonly op: string;
	readonly domain: string;
	readonly inputs: readonly string[];
	readonly outputs: readonly string[];
	readonly attributes: ReadonlyMap<string, ReadAttribute>;
}

export interface ReadTensor {
	/** TensorProto.DataType. */
	readonly type: number;
	readonly shape: readonly number[];
	readonly bytes: Uint8Array;
}

/** A graph input or output; names stand for sizes that are known at run time. */
export interface ReadValue {
	readonly name: string;
	readonly type: number;
	readonly shape: readonly (number | string)[];
}

export interface ReadModel {
	readonly nodes: readonly ReadNode[];
	readonly initializers: ReadonlyMap<string, ReadTensor>;
	readonly inputs: readonly ReadValue[];
	readonly outputs: readonly ReadValue[];
}

export interface Field {
	readonly number: number;
	/** 0: a varint; 2: bytes; 5: four bytes. */
	readonly wire: number;
	readonly value: bigint | Uint8Array;
}

/** The fields of one protobuf message, in order; fixed 32-bit ones as four bytes. */
export function* fields(bytes: Uint8Array): Generator<Field> {
	let at = 0;
	const varint = (): bigint => {
		let value = 0n;
		for (let shift = 0n; ; shift += 7n) {
			const byte = bytes[at++]!;
			value |= BigInt(byte & 127) << shift;
			if (byte < 128) return value;
		}
	};
	while (at < bytes.length) {
		const tag = Number(varint());
		const wire = tag & 7;
		if (wire === 0) yield { number: tag >> 3, wire, value: varint() };
		else if (wire === 2 || wire === 5) {
			const length = wire === 5 ? 4 : Number(varint());
			yield { number: tag >> 3, wire, value: bytes.subarray(at, at + length) };
			at += length;
		} else throw new Error(`wire type ${wire} is not written by OnnxModel`);
	}
}

const text = (value: bigint | Uint8Array): string => Buffer.from(value as Uint8Array).toString("utf8");
const int = (value: bigint | Uint8Array): number => Number(BigInt.asIntN(64, value as bigint));

function readAttribute(bytes: Uint8Array): [string, ReadAttribute] {
	let name = "";
	let value: ReadAttribute | undefined;
	const ints: number[] = [];
	for (const field of fields(bytes)) {
		if (field.number === 1) name = text(field.value);
		else if (field.number === 2) value = Buffer.from(field.value as Uint8Array).readFloatLE();
		else if (field.number === 3) value = int(field.value);
		else if (field.number === 4) value = text(field.value);
		else if (field.number === 8) ints.push(int(field.value));
	}
	return [name, value ?? ints];
}

function readNode(bytes: Uint8Array): ReadNode {
	const inputs: string[] = [];
	const outputs: string[] = [];
	const attributes = new Map<string, ReadAttribute>();
	let op = "";
	let domain = "";
	for (const { number, value } of fields(bytes)) {
		if (number === 1) inputs.push(text(value));
		else if (number === 2) outputs.push(text(value));
		else if (number === 4) op = text(value);
		else if (number === 5) attributes.set(...readAttribute(value as Uint8Array));
		else if (number === 7) domain = text(value);
	}
	return { op, domain, inputs, outputs, attributes };
}

function readTensor(bytes: Uint8Array, folder: string): [string, ReadTensor] {
	const shape: number[] = [];
	const external = new Map<string, string>();
	let type = 0;
	let name = "";
	let data: Uint8Array = new Uint8Array();
	for (const { number, value } of fields(bytes)) {
		if (number === 1) shape.push(int(value));
		else if (number === 2) type = int(value);
		else if (number === 8) name = text(value);
		else if (number === 9) data = new Uint8Array(value as Uint8Array);
		else if (number === 13) {
			const [key, entry] = [...fields(value as Uint8Array)].map((field) => text(field.value));
			external.set(key!, entry!);
		}
	}
	if (external.size > 0) {
		data = new Uint8Array(Number(external.get("length")));
		const fd = openSync(join(folder, external.get("location")!), "r");
		try {
			readSync(fd, data, 0, data.length, Number(external.get("offset")));
		} finally {
			closeSync(fd);
		}
	}
	return [name, { type, shape, bytes: data }];
}

function readValue(bytes: Uint8Array): ReadValue {
	let name = "";
	let type = 0;
	const shape: (number | string)[] = [];
	for (const field of fields(bytes)) {
		if (field.number === 1) name = text(field.value);
		else if (field.number === 2) {
			const [tensor] = fields(field.value as Uint8Array);
			for (const part of fields(tensor!.value as Uint8Array)) {
				if (part.number === 1) type = int(part.value);
				else if (part.number === 2) {
					for (const dimension of fields(part.value as Uint8Array)) {
						const [size] = fields(dimension.value as Uint8Array);
						shape.push(size!.number === 1 ? int(size!.value) : text(size!.value));
					}
				}
			}
		}
	}
	return { name, type, shape };
}

/** Reads a model; external tensors are looked for beside it. */
export function readOnnx(path: string): ReadModel {
	const nodes: ReadNode[] = [];
	const initializers = new Map<string, ReadTensor>();
	const inputs: ReadValue[] = [];
	const outputs: ReadValue[] = [];
	for (const part of fields(readFileSync(path))) {
		if (part.number !== 7) continue;
		for (const { number, value } of fields(part.value as Uint8Array)) {
			if (number === 1) nodes.push(readNode(value as Uint8Array));
			else if (number === 5) initializers.set(...readTensor(value as Uint8Array, dirname(path)));
			else if (number === 11) inputs.push(readValue(value as Uint8Array));
			else if (number === 12) outputs.push(readValue(value as Uint8Array));
		}
	}
	return { nodes, initializers, inputs, outputs };
}
