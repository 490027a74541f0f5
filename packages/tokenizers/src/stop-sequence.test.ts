// SPDX-License-Identifier: Apache-2.0
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { StopSequenceMatcher } from "./stop-sequence.js";

/** Straight from the definition: the stop string that ends first, the longest of those. */
function search(text: string, stops: string[]): { end: number; stop: string } | undefined {
	for (let end = 1; end <= text.length; end++) {
		const ending = stops.filter((s) => s !== "" && text.slice(0, end).endsWith(s)).sort((a, b) => b.length - a.length);
		if (ending[0] !== undefined) return { end, stop: ending[0] };
	}
	return undefined;
}

/** Length of the longest end of text that begins a stop string. */
function couldStop(text: string, stops: string[]): number {
	for (let n = text.length; n > 0; n--) if (stops.some((s) => s.length > n && s.startsWith(text.slice(-n)))) return n;
	return 0;
}

const isHigh = (text: string): boolean => (text.charCodeAt(text.length - 1) & 0xfc00) === 0xd800;

/** Cuts a text at random places, also inside surrogate pairs. */
const chunked = (text: string): fc.Arbitrary<string[]> =>
	fc.array(fc.nat(text.length), { maxLength: 12 }).map((cuts) => {
		const places = [0, ...cuts.sort((a, b) => a - b), text.length];
		return places.slice(1).map((end, i) => text.slice(places[i], end));
	});

const unit = fc.constantFrom("a", "b", "c", "😀", "😁", "世");
const cases = fc
	.record({
		text: fc.string({ unit, maxLength: 30 }),
		stops: fc.array(fc.string({ unit, maxLength: 5 }), { maxLength: 4 }),
		include: fc.boolean(),
	})
	.chain((c) => chunked(c.text).map((chunks) => ({ ...c, chunks })));

describe("StopSequenceMatcher", () => {
	it("gives what a search of the whole text gives, however the text is cut, and holds back no more than needed", () => {
		fc.assert(
			fc.property(cases, ({ text, stops, include, chunks }) => {
				const found = search(text, stops);
				const matcher = new StopSequenceMatcher(stops, { includeStopString: include });
				let seen = "";
				let sent = "";
				for (const chunk of chunks) {
					seen += chunk;
					const result = matcher.push(chunk);
					sent += result.text;
					expect(isHigh(result.text)).toBe(false);
					const stopped = found !== undefined && seen.length >= found.end;
					expect(result.stopped).toBe(stopped ? found.stop : undefined);
					if (stopped) continue;
					const keep = include ? 0 : couldStop(seen, stops);
					const wait = isHigh(seen.slice(0, seen.length - keep)) ? 1 : 0;
					expect(seen.length - sent.length).toBe(keep + wait);
				}
				const last = matcher.flush();
				sent += last.text;
				expect(last.stopped).toBe(found?.stop);
				const end = found === undefined ? text.length : include ? found.end : found.end - found.stop.length;
				expect(sent).toBe(text.slice(0, end));
			}),
			{ numRuns: 3000 },
		);
	});

	it.each([
		[["abcd", "bc"], ["xa", "bc", "d"], "xa", "bc"],
		[["END"], ["E", "EN", "D!"], "E", "END"],
		[["aab"], ["aaa", "ab"], "aa", "aab"],
		[["b", "ab"], ["xab"], "x", "ab"],
		[["😀"], ["a😁", "😀b"], "a😁", "😀"],
	])("%j in %j", (stops, chunks, text, stopped) => {
		const matcher = new StopSequenceMatcher(stops);
		const sent = chunks.map((chunk) => matcher.push(chunk).text).join("");
		expect(sent + matcher.flush().text).toBe(text);
		expect(matcher.stopped).toBe(stopped);
		expect(matcher.push("more")).toEqual({ text: "", stopped });
	});

	it("without stop strings passes everything on", () => {
		const matcher = new StopSequenceMatcher(["", ""]);
		expect(matcher.push("abc")).toEqual({ text: "abc", stopped: undefined });
		expect(matcher.flush()).toEqual({ text: "", stopped: undefined });
	});

	it("a stop string that is half a surrogate pair never cuts a pair", () => {
		const matcher = new StopSequenceMatcher(["\ude00"]);
		expect(matcher.push("a😀b").text).toBe("a😀b");
	});
});
