// SPDX-License-Identifier: Apache-2.0
import { DynamoError, type EndpointRecord } from "@dynamo-ts/protocols/internal";
import type { Router } from "./router.js";

/** Picks nobody: requests must name their worker. */
export class DirectPolicy implements Router {
	readonly name = "direct";

	pick(): EndpointRecord | undefined {
		return undefined;
	}

	refusal(): DynamoError {
		return new DynamoError(
			"InvalidArgument",
			"the router mode is direct: name the worker in x-dynamo-worker-instance-id or nvext.backend_instance_id",
		);
	}
}
