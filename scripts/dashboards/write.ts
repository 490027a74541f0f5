// SPDX-License-Identifier: Apache-2.0
// Writes the dashboards into the folder that Grafana is given.
import { writeFileSync } from "node:fs";
import { buildDashboards } from "./build.js";

const folder = new URL("../../deploy/observability/grafana/dashboards/", import.meta.url);
for (const [name, dashboard] of Object.entries(buildDashboards())) {
	writeFileSync(new URL(name, folder), `${JSON.stringify(dashboard, null, "\t")}\n`);
}
