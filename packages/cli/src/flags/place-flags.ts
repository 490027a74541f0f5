// SPDX-License-Identifier: Apache-2.0
import { ENV } from "@dynamo-ts/protocols/internal";
import type { FlagSpec } from "./flag-spec.js";

/** Where in the deployment an endpoint is. */
export function placeFlags(endpointHelp: string): FlagSpec[] {
	return [
		{
			flag: "namespace",
			env: ENV.DYN_NAMESPACE,
			type: "string",
			default: "dynamo",
			help: "Namespace of the deployment; --endpoint wins over it.",
		},
		{
			flag: "endpoint",
			env: ENV.DYN_ENDPOINT,
			type: "string",
			metavar: "dyn://NAMESPACE.COMPONENT.ENDPOINT",
			defaultText: "dyn://NAMESPACE.backend.generate",
			help: endpointHelp,
		},
	];
}
