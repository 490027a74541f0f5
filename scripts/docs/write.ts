// SPDX-License-Identifier: Apache-2.0
// Writes the documents that are made from the code. Run it with `npm run docs:metrics`.
import { writeFileSync } from "node:fs";
import { metricsDocument } from "./metrics-table.js";

writeFileSync(new URL("../../docs/metrics.md", import.meta.url), metricsDocument());
