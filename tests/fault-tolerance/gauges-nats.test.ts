// SPDX-License-Identifier: Apache-2.0
// Requests over NATS, with migration: see gauge-suite.ts.
import { PLANES } from "@dynamo-ts/testing/internal";
import { gaugesAfterOutcomes, MOVES } from "./gauge-suite.js";

const NEVER_WAIT = ["dynamo_frontend_router_queue_pending_requests", "dynamo_frontend_router_queue_pending_isl_tokens"];
for (const plane of PLANES) if (plane.name === "nats") gaugesAfterOutcomes(plane, [MOVES], NEVER_WAIT);
