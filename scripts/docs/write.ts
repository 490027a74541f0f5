// SPDX-License-Identifier: Apache-2.0
// Writes the documents that are made from the code. Run it with `npm run docs:tables`.
import { readFileSync, writeFileSync } from "node:fs";
import { commandSpecs, configurationDocument } from "./env-tables.js";
import { metricsDocument } from "./metrics-table.js";

const docs = new URL("../../docs/", import.meta.url);
writeFileSync(new URL("metrics.md", docs), metricsDocument());
const configuration = new URL("configuration.md", docs);
writeFileSync(configuration, configurationDocument(readFileSync(configuration, "utf8"), await commandSpecs()));
