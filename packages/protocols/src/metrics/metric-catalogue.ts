// SPDX-License-Identifier: Apache-2.0
import { METRIC_PREFIXES } from "../metric-names.js";
import { COMPONENT_FAMILIES } from "./component-families.js";
import { FRONTEND_FAMILIES } from "./frontend-families.js";

/** Every family of Dynamo 1.6.1's frontend and components: names, types, labels and bounds as they are on its pages. */
export const METRICS = { frontend: FRONTEND_FAMILIES, component: COMPONENT_FAMILIES } as const;

/** The name on the page, e.g. `dynamo_frontend_requests_total`. */
export function fullMetricName(group: keyof typeof METRICS, name: string): string {
	return `${METRIC_PREFIXES[group]}_${name}`;
}
