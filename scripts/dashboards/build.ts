// SPDX-License-Identifier: Apache-2.0
// The dashboards as Grafana reads them. `npm run dashboards` writes them to deploy/.
import type { Dashboard } from "@grafana/grafana-foundation-sdk/dashboard";
import { disaggregatedDashboard } from "./disaggregated.js";
import { dynamoDashboard } from "./dynamo.js";
import { nimDashboard } from "./nim.js";

/** File name and content of each. */
export function buildDashboards(): Record<string, Dashboard> {
	return {
		"dynamo.json": plain(dynamoDashboard().build()),
		"dynamo-disaggregated.json": plain(disaggregatedDashboard().build()),
		"nim.json": plain(nimDashboard().build()),
	};
}

/** As plain JSON; panels are numbered from 1 in their order, and links stand beside the variables, not in a menu. */
function plain(built: Dashboard): Dashboard {
	const dashboard: Dashboard = JSON.parse(JSON.stringify(built));
	dashboard.panels?.forEach((panel, i) => {
		panel.id = i + 1;
	});
	for (const link of dashboard.links ?? []) delete link.placement;
	return dashboard;
}
