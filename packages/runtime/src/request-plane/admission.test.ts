// SPDX-License-Identifier: Apache-2.0
import fc from "fast-check";
import { expect, test } from "vitest";
import { createMetricsRegistry } from "../observability/metrics.js";
import { Admission } from "./admission.js";
import type { Ticket } from "./turnstile.js";

const INFINITE = Number.POSITIVE_INFINITY;

test("never more run than may, those that wait run in order, and in the end nobody is left", async () => {
	await fc.assert(
		fc.asyncProperty(
			fc.constantFrom(1, 2, 5, INFINITE),
			fc.constantFrom(0, 1, 3, INFINITE),
			fc.array(fc.oneof(fc.constant("enter" as const), fc.nat(20)), { maxLength: 60 }),
			async (engine, queue, steps) => {
				const metrics = createMetricsRegistry({ prefix: "dynamo" });
				const admission = new Admission(engine, queue, metrics);
				const inside = new Map<number, Ticket>();
				const started: number[] = [];
				const left: number[] = [];
				let rejected = 0;
				for (const [id, step] of steps.entries()) {
					if (step === "enter") {
						const full = inside.size >= engine + queue;
						const refusal = admission.refusal(0);
						expect(refusal !== undefined).toBe(full);
						if (refusal !== undefined) {
							rejected++;
							expect(refusal).toContain(`DYN_ENGINE_REQUEST_LIMIT ${engine}`);
							continue;
						}
						inside.set(id, { run: undefined });
						inside.set(
							id,
							admission.enter(() => started.push(id)),
						);
					} else {
						const [who] = [...inside][step % Math.max(1, inside.size)] ?? [];
						if (who === undefined) continue;
						const ticket = inside.get(who) as Ticket;
						inside.delete(who);
						left.push(who);
						admission.leave(ticket);
						admission.leave(ticket);
					}
					const running = [...inside.keys()].filter((each) => started.includes(each));
					expect(running.length).toBe(Math.min(inside.size, engine));
				}
				expect(started).toEqual([...started].sort((a, b) => a - b));
				for (const ticket of inside.values()) admission.leave(ticket);
				const page = await metrics.scrape();
				expect(page).toContain("dynamo_engine_request 0");
				expect(page).toContain("dynamo_request_queue 0");
				expect(page).toContain(`dynamo_rejection_request_total ${rejected}`);
			},
		),
	);
});
