// SPDX-License-Identifier: Apache-2.0
// What a worker does of a request, and what its card and place in the deployment say about it.
import { formatModelType, type ModelDeploymentCard, type WorkerType } from "@dynamo-ts/protocols/internal";

/** `aggregated`: all of it. `prefill`: the prompt. `decode`: the answer, from a prompt that a prefill worker computed. */
export type WorkerRole = Exclude<WorkerType, "encode">;

/** Where workers of a role serve when nobody says otherwise; as Dynamo's workers. */
export const DEFAULT_COMPONENT: Readonly<Record<WorkerRole, string>> = {
	aggregated: "backend",
	prefill: "prefill",
	decode: "backend",
};

/**
 * The members of a card that depend on the role. A prefill worker serves no API by itself, and each of the two roles
 * names the other as what it cannot do without.
 */
export function roleMembers(role: WorkerRole): Pick<ModelDeploymentCard, "model_type" | "worker_type" | "needs"> {
	switch (role) {
		case "prefill":
			return { model_type: "", worker_type: role, needs: [["decode"]] };
		case "decode":
			return { model_type: formatModelType(["Chat", "Completions"]), worker_type: role, needs: [["prefill"]] };
		default:
			return { model_type: formatModelType(["Chat", "Completions"]), worker_type: role, needs: [] };
	}
}
