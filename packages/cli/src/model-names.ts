// SPDX-License-Identifier: Apache-2.0
import { ENV, type EndpointId, isDynamoError } from "@dynamo-ts/protocols/internal";
import type { WorkerRole } from "@dynamo-ts/worker";
import { usageError } from "./cli-error.js";
import type { ParsedFlags } from "./flags/parse-flags.js";

export interface ModelNames {
	/** The model's public name. */
	readonly modelName: string;
	readonly endpoint: EndpointId;
}

/**
 * What a worker is called and where it serves.
 * @param role decides the component where no endpoint is given; default aggregated.
 * @throws CliError for a bad name, namespace or endpoint.
 */
export async function modelNames(
	flags: ParsedFlags,
	model: { readonly name: string },
	role: WorkerRole = "aggregated",
): Promise<ModelNames> {
	const modelName = flags.string("model-name") ?? model.name;
	if (modelName.trim() === "" || /[\u0000-\u001f]/.test(modelName)) {
		throw usageError(`--model-name (${ENV.DYN_MODEL_NAME}) "${modelName}" is not a name`);
	}
	const { DEFAULT_COMPONENT, parseEndpointAddress } = await import("@dynamo-ts/worker");
	const given = flags.string("endpoint");
	try {
		return {
			modelName,
			endpoint: parseEndpointAddress(given ?? `dyn://${flags.string("namespace")}.${DEFAULT_COMPONENT[role]}.generate`),
		};
	} catch (error) {
		if (!isDynamoError(error)) throw error;
		if (given !== undefined) throw usageError(`--endpoint (${ENV.DYN_ENDPOINT}): ${error.message}`);
		throw usageError(
			`--namespace (${ENV.DYN_NAMESPACE}) "${flags.string("namespace")}" is not valid: letters, digits, - and _ are expected`,
		);
	}
}
