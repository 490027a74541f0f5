// SPDX-License-Identifier: Apache-2.0
import { fileURLToPath } from "node:url";
import type { LLMEngineOutput } from "@dynamo-ts/protocols/internal";
import { Tokenizer } from "@dynamo-ts/tokenizers";
import fc from "fast-check";
import { beforeAll, describe, expect, it } from "vitest";
import { type ChoiceRules, ChoiceState, WorkerFinishError } from "./choice-state.js";

let tokenizer: Tokenizer;
beforeAll(async () => {
	tokenizer = await Tokenizer.fromFile(
		fileURLToPath(new URL("../fixtures/tiny-model/tokenizer.json", import.meta.url)),
	);
});

const EOS = 2;

function rules(more: Partial<ChoiceRules> = {}): ChoiceRules {
	return {
		tokenizer,
		skipSpecialTokens: true,
		stops: [],
		includeStopString: false,
		stopTokenIds: new Set([EOS]),
		minTokens: 0,
		wantLogprobs: false,
		topLogprobs: 0,
		showStopTokens: false,
		hideAlternatives: false,
		promptLogprobs: false,
		tokensAsIds: false,
		...more,
	};
}

function delta(ids: number[], more: Partial<LLMEngineOutput> = {}): LLMEngineOutput {
	return { token_ids: ids, ...more };
}

/** Feeds ids in groups of the given sizes, then the finish reason. */
function run(choice: ChoiceState, ids: readonly number[], sizes: readonly number[] = []): string[] {
	const texts: string[] = [];
	let at = 0;
	for (let i = 0; at < ids.length; i++) {
		const size = sizes.length === 0 ? 1 : (sizes[i % sizes.length] as number);
		texts.push(choice.accept(delta(ids.slice(at, at + size))));
		at += size;
	}
	texts.push(choice.accept(delta([], { finish_reason: "length" })));
	return texts;
}

describe("text", () => {
	it("is the decoded text, in whole characters, however the tokens are grouped", async () => {
		const text = " Hello world é🙂 日本 is";
		const ids = await tokenizer.encode(text);
		fc.assert(
			fc.property(fc.array(fc.integer({ min: 1, max: 5 }), { minLength: 1, maxLength: 10 }), (sizes) => {
				const choice = new ChoiceState(0, rules());
				const texts = run(choice, ids, sizes);
				expect(texts.join("")).toBe(text);
				expect(texts.join("")).not.toContain("\ufffd");
				expect(texts.every((t) => t.isWellFormed())).toBe(true);
				expect(choice.tokens).toBe(ids.length);
				expect(choice.finishReason).toBe("length");
			}),
		);
	});

	it("of a worker that sends text is used as it is", () => {
		const choice = new ChoiceState(0, rules());
		expect(choice.accept(delta([5, 6], { text: "given" }))).toBe("given");
		expect(choice.tokens).toBe(2);
	});

	it("of an unfinished character comes out as U+FFFD at the end", async () => {
		const ids = (await tokenizer.encode("🙂")).slice(0, 2);
		expect(run(new ChoiceState(0, rules()), ids).join("")).toBe("\ufffd");
	});
});

describe("the end", () => {
	it("an EOS token is dropped, counted, and ends the choice here", async () => {
		const ids = [...(await tokenizer.encode(" Hello")), EOS, ...(await tokenizer.encode(" world"))];
		const choice = new ChoiceState(0, rules());
		expect(choice.accept(delta(ids))).toBe(" Hello");
		expect(choice).toMatchObject({ finishReason: "stop", stoppedHere: true, tokens: 2 });
		expect(choice.accept(delta([10]))).toBe("");
		expect(choice.tokens).toBe(2);
	});

	it("with ignore_eos the token is only invisible", () => {
		const choice = new ChoiceState(0, rules({ stopTokenIds: new Set() }));
		expect(choice.accept(delta([EOS]))).toBe("");
		expect(choice.finishReason).toBeUndefined();
	});

	it("min_tokens keeps EOS and stop strings from ending it", async () => {
		const [hello, world] = [await tokenizer.encode(" Hello"), await tokenizer.encode(" world")];
		const choice = new ChoiceState(0, rules({ minTokens: 3, stops: ["world"] }));
		expect(choice.accept(delta([...world, EOS]))).toBe(" world");
		expect(choice.finishReason).toBeUndefined();
		expect(choice.accept(delta([...hello, ...world]))).toBe(" Hello ");
		expect(choice.finishReason).toBe("stop");
	});

	it.each([
		["eos", "stop"],
		["stop", "stop"],
		["cancelled", "stop"],
		["abort", "stop"],
		["length", "length"],
		["content_filter", "content_filter"],
	] as const)("the worker's %s is shown as %s", (wire, shown) => {
		const choice = new ChoiceState(0, rules());
		choice.accept(delta([70], { finish_reason: wire }));
		expect(choice.finishReason).toBe(shown);
		expect(choice.stoppedHere).toBe(false);
	});

	it.each([["error"], [{ error: "out of memory" }], ["because"]])("the worker's %j is an error", (wire) => {
		const choice = new ChoiceState(0, rules());
		expect(() => choice.accept(delta([], { finish_reason: wire as never }))).toThrow(WorkerFinishError);
	});

	it("one delta may carry the last token and the finish reason", async () => {
		const choice = new ChoiceState(0, rules({ stops: ["zzz"] }));
		const ids = await tokenizer.encode(" Hello");
		expect(choice.accept(delta(ids, { finish_reason: "stop" }))).toBe(" Hello");
	});
});

describe("stop strings", () => {
	it("never leak and hold back no more than they must, over all splits", async () => {
		const stops = ["END", "is Paris"];
		const ids = await tokenizer.encode(" the capital is Pa, is Paris. EN END after");
		const text = tokenizer.decode(ids);
		const expected = text.slice(0, text.indexOf("is Paris"));
		fc.assert(
			fc.property(fc.array(fc.integer({ min: 1, max: 7 }), { minLength: 1, maxLength: 8 }), (sizes) => {
				const choice = new ChoiceState(0, rules({ stops }));
				let shown = "";
				let at = 0;
				for (let i = 0; choice.finishReason === undefined; i++) {
					const size = sizes[i % sizes.length] as number;
					shown += choice.accept(delta(ids.slice(at, at + size)));
					at += size;
					const sofar = tokenizer.decode(ids.slice(0, at));
					if (choice.finishReason === undefined) {
						const held = sofar.slice(shown.length);
						expect(stops.some((stop) => stop.startsWith(held))).toBe(true);
					}
				}
				expect(shown).toBe(expected);
				expect(choice).toMatchObject({ finishReason: "stop", stoppedHere: true });
			}),
		);
	});

	it("what was held back comes out when the end comes first", async () => {
		const choice = new ChoiceState(0, rules({ stops: ["END"] }));
		expect(run(choice, await tokenizer.encode(" EN")).join("")).toBe(" EN");
		expect(choice.finishReason).toBe("length");
	});

	it("are shown when the client wants them", async () => {
		const choice = new ChoiceState(0, rules({ stops: ["END"], includeStopString: true }));
		expect(choice.accept(delta(await tokenizer.encode(" the END is")))).toBe(" the END");
	});
});

describe("log-probabilities", () => {
	it("one entry per token, EOS included, with bytes and offsets", async () => {
		const choice = new ChoiceState(0, rules({ wantLogprobs: true }));
		const ids = [...(await tokenizer.encode(" Hello é")), EOS];
		for (const id of ids) {
			choice.accept(
				delta([id], {
					log_probs: [-0.5],
					top_logprobs: [[{ rank: 0, token_id: id, token: null, logprob: -0.5 }]],
				}),
			);
		}
		const entries = choice.takeLogprobs() ?? [];
		expect(entries).toHaveLength(choice.tokens);
		expect(entries.map(({ textOffset }) => textOffset)).toEqual([0, 6, 7, 7, 8]);
		expect(Buffer.from(entries.flatMap(({ bytes }) => [...(bytes ?? [])])).toString()).toBe(" Hello é");
		expect(entries.at(-1)).toMatchObject({ tokenId: EOS, token: "", bytes: null });
		expect(entries[0]).toMatchObject({ token: " Hello", logprob: -0.5, top: [{ token: " Hello", logprob: -0.5 }] });
		expect(choice.takeLogprobs()).toBeUndefined();
	});

	it("are as many as the tokens counted, whatever is held back, cut off or hidden", async () => {
		const ids = await tokenizer.encode(" Hello world é🙂 日本 is the end of");
		fc.assert(
			fc.property(
				fc.array(fc.integer({ min: 1, max: 5 }), { minLength: 1, maxLength: 10 }),
				fc.constantFrom<string[]>([], ["world é"], ["日本"], ["本 is", "zzz"], ["of nothing"]),
				fc.option(fc.nat({ max: ids.length }), { nil: undefined }),
				(sizes, stops, eosAt) => {
					const choice = new ChoiceState(0, rules({ stops, wantLogprobs: true }));
					const all = eosAt === undefined ? ids : [...ids.slice(0, eosAt), EOS, ...ids.slice(eosAt)];
					let entries = 0;
					let at = 0;
					for (let i = 0; at < all.length && choice.finishReason === undefined; i++) {
						const group = all.slice(at, at + sizes[i % sizes.length]!);
						at += group.length;
						choice.accept(delta(group, { log_probs: group.map(() => -1) }));
						entries += choice.takeLogprobs()?.length ?? 0;
						expect(entries).toBe(choice.tokens);
					}
				},
			),
		);
	});
});
