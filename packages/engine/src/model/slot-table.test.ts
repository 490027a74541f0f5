// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from "vitest";
import { SlotTable } from "./slot-table.js";

const members = (...ids: number[]) => ids.map((id) => ({ id }));

describe("SlotTable", () => {
	it("gives the first free slot, and none to one too many", () => {
		const table = new SlotTable(3);
		expect([10, 11, 12].map((id) => table.take(id))).toEqual([0, 1, 2]);
		expect(() => table.take(13)).toThrow(/more than 3/);
		table.release(11);
		table.release(99);
		expect(table.take(13)).toBe(1);
		expect([table.find(13), table.find(11), table.size]).toEqual([1, undefined, 3]);
	});

	it("closes a gap once its waste outweighs the move", () => {
		const table = new SlotTable(4);
		for (const id of [1, 2, 3]) table.setLength(table.take(id), 500);
		expect(table.closeGap(members(1, 2, 3))).toBeUndefined();
		table.release(2);
		expect(table.closeGap(members(1, 3))).toBeUndefined();
		expect(table.closeGap(members(1, 3))).toBeUndefined();
		expect(table.closeGap(members(1, 3))).toEqual({ from: 2, to: 1, length: 500 });
		expect([table.find(3), table.length(1), table.length(2)]).toEqual([1, 500, 0]);
		expect(table.closeGap(members(1, 3))).toBeUndefined();
	});

	it("leaves a gap that a sequence of its own fills", () => {
		const table = new SlotTable(3);
		for (const id of [1, 2, 3]) table.setLength(table.take(id), 1);
		for (let i = 0; i < 5; i++) expect(table.closeGap(members(1, 3))).toBeUndefined();
	});
});
