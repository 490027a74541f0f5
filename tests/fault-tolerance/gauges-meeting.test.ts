// SPDX-License-Identifier: Apache-2.0
// Prefill and decode worker have a request at once, over NATS: see disaggregated-gauge-suite.ts.
import { PLANES } from "@dynamo-ts/testing/internal";
import { gaugesAfterHandedOver } from "./disaggregated-gauge-suite.js";

for (const plane of PLANES) {
	if (plane.name === "nats") gaugesAfterHandedOver(plane, { name: "both at once", meet: true, moves: false });
}
