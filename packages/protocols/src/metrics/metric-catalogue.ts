// SPDX-License-Identifier: Apache-2.0
import { METRIC_PREFIXES } from "../metric-names.js";
import { COMPONENT_FAMILIES } from "./component-families.js";
import { ENGINE_FAMILIES, VLLM_FAMILIES } from "./engine-families.js";
import { FRONTEND_FAMILIES } from "./frontend-families.js";
import { KV_TRANSFER_FAMILIES } from "./kv-transfer-families.js";
import { NIM_FAMILIES } from "./nim-families.js";
import { ROUTER_FAMILIES } from "./router-families.js";
import {
	ADMISSION_FAMILIES,
	EVENT_FAMILIES,
	REQUEST_PLANE_FAMILIES,
	TRANSPORT_FAMILIES,
	WORK_HANDLER_FAMILIES,
} from "./runtime-families.js";

/**
 * Every family that there is, by group. Names, types, labels and bounds of what Dynamo 1.6.1 has are as they are on its
 * pages; the words of the help texts are our own.
 */
export const METRICS = {
	frontend: FRONTEND_FAMILIES,
	component: COMPONENT_FAMILIES,
	workHandler: WORK_HANDLER_FAMILIES,
	admission: ADMISSION_FAMILIES,
	requestPlane: REQUEST_PLANE_FAMILIES,
	transport: TRANSPORT_FAMILIES,
	router: ROUTER_FAMILIES,
	event: EVENT_FAMILIES,
	engine: ENGINE_FAMILIES,
	kvTransfer: KV_TRANSFER_FAMILIES,
	vllm: VLLM_FAMILIES,
	nim: NIM_FAMILIES,
} as const;

/** The name on the page, e.g. `dynamo_frontend_requests_total`. */
export function fullMetricName(group: keyof typeof METRICS, name: string): string {
	const prefix = METRIC_PREFIXES[group];
	return prefix === "" ? name : `${prefix}_${name}`;
}
