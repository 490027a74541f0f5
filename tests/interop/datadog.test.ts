// SPDX-License-Identifier: Apache-2.0
// Datadog's check for NVIDIA NIM, as its agent runs it, finds all it looks for on our frontend's page.
import {
	Fleet,
	findDatadogCheck,
	type HttpChild,
	http,
	runDatadogCheck,
	testModel,
	titled,
	untilFrontendIdle,
} from "@dynamo-ts/testing/internal";
import { afterAll, beforeAll, expect, test } from "vitest";

const MODEL = "smol";
const model = testModel("hf");
const missing = model.missing || findDatadogCheck().missing;

const fleet = new Fleet();
let frontend: HttpChild;

beforeAll(async () => {
	if (missing) return;
	await fleet.mocker(model.path, MODEL, ["--speedup-ratio", "100"]);
	frontend = await fleet.frontend(MODEL);
}, 120_000);
afterAll(() => fleet.stop());

test(titled("Datadog's check finds its 34 metrics before the first request", missing), async (context) => {
	context.skip(missing !== "", missing);
	const { code, output } = await runDatadogCheck(`${frontend.url}/metrics`);
	expect(output).toContain("34/34");
	expect(code, output).toBe(0);
}, 90_000);

test(titled("and after requests", missing), async (context) => {
	context.skip(missing !== "", missing);
	for (const stream of [true, false]) {
		const body = { model: MODEL, messages: [{ role: "user", content: "Hello" }], max_tokens: 5, stream };
		expect((await http(`${frontend.url}/v1/chat/completions`, { body })).status).toBe(200);
	}
	await untilFrontendIdle(frontend);
	const { code, output } = await runDatadogCheck(`${frontend.url}/metrics`);
	expect(output).toContain("34/34");
	expect(code, output).toBe(0);
}, 90_000);
