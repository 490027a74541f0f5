// SPDX-License-Identifier: Apache-2.0

/** A number without an exponent, as Rust shows floats. */
function withoutExponent(text: string): string {
	const match = /^(-?)(\d)(?:\.(\d+))?e([+-]\d+)$/.exec(text);
	if (match === null) return text;
	const [, sign, head, tail = "", exponent] = match as unknown as [string, string, string, string | undefined, string];
	const digits = head + tail;
	const point = 1 + Number(exponent);
	if (point <= 0) return `${sign}0.${"0".repeat(-point)}${digits}`;
	return (
		sign + (point >= digits.length ? digits.padEnd(point, "0") : `${digits.slice(0, point)}.${digits.slice(point)}`)
	);
}

function shown(value: number, text: string): string {
	if (Number.isNaN(value)) return "NaN";
	if (!Number.isFinite(value)) return value > 0 ? "inf" : "-inf";
	return Object.is(value, -0) ? "-0" : withoutExponent(text);
}

/** The nearest 32-bit float as Rust shows it: the fewest digits that tell it apart, no exponent. */
export function f32Text(value: number): string {
	const single = Math.fround(value);
	if (!Number.isFinite(single)) return shown(single, "");
	for (let digits = 1; digits < 9; digits++) {
		const text = single.toPrecision(digits);
		if (Math.fround(Number(text)) === single) return shown(single, String(Number(text)));
	}
	return shown(single, String(Number(single.toPrecision(9))));
}
