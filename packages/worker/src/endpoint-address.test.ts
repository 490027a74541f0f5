// SPDX-License-Identifier: Apache-2.0
import { expect, test } from "vitest";
import { formatEndpointAddress, parseEndpointAddress } from "./endpoint-address.js";

test("addresses of endpoints", () => {
	const id = { namespace: "ns", component: "back-end_1", name: "generate" };
	expect(parseEndpointAddress("dyn://ns.back-end_1.generate")).toEqual(id);
	expect(parseEndpointAddress("ns.back-end_1.generate")).toEqual(id);
	expect(parseEndpointAddress("dyn://ns/back-end_1/generate")).toEqual(id);
	expect(parseEndpointAddress(formatEndpointAddress(id))).toEqual(id);
});

test.each(["", "dyn://", "a.b", "a.b.c.d", "a..c", "a.b c.d", "http://a.b.c"])("%j is refused", (text) => {
	expect(() => parseEndpointAddress(text)).toThrow(/NAMESPACE\.COMPONENT\.ENDPOINT/);
});
