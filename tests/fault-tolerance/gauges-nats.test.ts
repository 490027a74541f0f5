// SPDX-License-Identifier: Apache-2.0
// Requests over NATS, with migration: see gauge-suite.ts.
import { PLANES } from "@dynamo-ts/testing/internal";
import { gaugesAfterOutcomes, MOVES } from "./gauge-suite.js";
import { ROUTER_QUEUE_GAUGES } from "./outcomes.js";

for (const plane of PLANES) if (plane.name === "nats") gaugesAfterOutcomes(plane, [MOVES], ROUTER_QUEUE_GAUGES);
