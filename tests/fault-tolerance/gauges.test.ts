// SPDX-License-Identifier: Apache-2.0
// Requests over TCP, with and without migration: see gauge-suite.ts.
import { PLANES } from "@dynamo-ts/testing/internal";
import { gaugesAfterOutcomes, HOLDS_BACK, MOVES } from "./gauge-suite.js";

for (const plane of PLANES) if (plane.name === "tcp") gaugesAfterOutcomes(plane, [HOLDS_BACK, MOVES]);
