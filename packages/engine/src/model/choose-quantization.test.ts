// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from "vitest";
import { hasByteDotProduct } from "../ort/cpu-features.js";
import type { WeightTensor } from "../weights/weight-source.js";
import { chooseQuantization } from "./choose-quantization.js";

const tensor: WeightTensor = { name: "w", type: "F16", shape: [1000, 1000], rows: 1000, columns: 1000 };
const weights = { tensors: new Map([[tensor.name, tensor]]) };
const roomy = { weights, memoryBytes: 16e6, byteDotProduct: false };

describe("chooseQuantization", () => {
	it("keeps what was asked for", () => {
		for (const asked of ["none", "int8", "int4"] as const) expect(chooseQuantization(asked, roomy)).toBe(asked);
	});

	it("takes fp32 without a dot product of bytes, where it fits and steps have many rows", () => {
		expect(chooseQuantization("auto", roomy)).toBe("none");
		expect(chooseQuantization("auto", { ...roomy, maxNumSeqs: 3 })).toBe("none");
		expect(chooseQuantization("auto", { ...roomy, maxNumSeqs: 2 })).toBe("auto");
		expect(chooseQuantization("auto", { ...roomy, memoryBytes: 15.9e6 })).toBe("auto");
		expect(chooseQuantization("auto", { ...roomy, byteDotProduct: true })).toBe("auto");
	});
});

describe("hasByteDotProduct", () => {
	it("reads the kernel's names", () => {
		expect(hasByteDotProduct(["fma", "avx2"])).toBe(false);
		expect(hasByteDotProduct(["avx2", "avx512_vnni"])).toBe(true);
		expect(hasByteDotProduct(["avx2", "avx_vnni"])).toBe(true);
		expect(hasByteDotProduct(["asimd", "asimddp"])).toBe(true);
		expect(hasByteDotProduct([])).toBe(true);
	});
});
