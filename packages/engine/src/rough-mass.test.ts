// SPDX-License-Identifier: Apache-2.0
import fc from "fast-check";
import { expect, it } from "vitest";
import { ROUGH_FACTOR, ROUGH_REST, roughMass, roughOf } from "./rough-mass.js";
import { isAllowed } from "./token-mask.js";

const words = fc.array(fc.constantFrom(0, 0xffff_ffff, 0x8000_0001, 0x5555_5555), { minLength: 7, maxLength: 7 });

it("is off by no more than it says, whatever the mask", () => {
	fc.assert(
		fc.property(
			fc.array(fc.float({ min: -60, max: 0, noNaN: true }), { minLength: 1, maxLength: 200 }),
			fc.constantFrom(0.1, 0.7, 1, 2),
			fc.option(words, { nil: undefined }),
			(list, temperature, bits) => {
				const logits = Float32Array.of(7, 7, ...list);
				const mask = bits === undefined ? undefined : Uint32Array.from(bits);
				let exact = 0;
				for (let i = 2; i < logits.length; i++) {
					if (isAllowed(mask, i - 2)) exact += Math.exp(logits[i]! / temperature);
				}
				const rough = roughMass(logits, 2, list.length, 0, temperature, mask);
				expect(rough).toBeGreaterThanOrEqual((exact - list.length * ROUGH_REST) / ROUGH_FACTOR - 1e-12);
				expect(rough).toBeLessThanOrEqual(exact * ROUGH_FACTOR + 1e-12);
				const one = roughMass(logits, 2, 1, 0, temperature, undefined);
				expect(one).toBe(roughOf(logits[2]!, 0, temperature));
			},
		),
	);
	expect(roughMass(Float32Array.of(Number.NaN, 0), 0, 2, 0, 1, undefined)).toBeCloseTo(1, 1);
});
