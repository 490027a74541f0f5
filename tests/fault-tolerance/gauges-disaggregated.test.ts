// SPDX-License-Identifier: Apache-2.0
// Prefill and decode worker have a request one after the other: see disaggregated-gauge-suite.ts.
import { PLANES } from "@dynamo-ts/testing/internal";
import { gaugesAfterHandedOver } from "./disaggregated-gauge-suite.js";

for (const plane of PLANES) {
	if (plane.name === "tcp") gaugesAfterHandedOver(plane, { name: "one after the other", meet: false, moves: true });
}
