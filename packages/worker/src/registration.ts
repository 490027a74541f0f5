// SPDX-License-Identifier: Apache-2.0
// A model's record and its endpoint: they come and go together, in an order in which no request gets lost.
import { DynamoError, type ModelRecord, mdcsum } from "@dynamo-ts/protocols/internal";
import type { DistributedRuntime, ServedEndpoint } from "@dynamo-ts/runtime";
import { formatEndpointAddress } from "./endpoint-address.js";

/** A model at an endpoint of this process. */
export class ModelRegistration {
	readonly record: ModelRecord;
	readonly served: ServedEndpoint;
	readonly #runtime: DistributedRuntime;
	#registered = false;

	/** @param served not registered yet. */
	constructor(runtime: DistributedRuntime, record: ModelRecord, served: ServedEndpoint) {
		this.#runtime = runtime;
		this.record = record;
		this.served = served;
	}

	/** Requests being handled now. */
	get inflight(): number {
		return this.served.inflight;
	}

	/** The card first: a model without instances is not listed, an instance without a card is of no use. */
	async register(): Promise<void> {
		await this.#runtime.discovery.put(this.record);
		this.#registered = true;
		await this.served.register();
	}

	/** Takes both records back. Idempotent. */
	async unregister(): Promise<void> {
		if (!this.#registered) return;
		this.#registered = false;
		await Promise.all([this.served.unregister(), this.#runtime.discovery.delete(this.record)]);
	}

	/**
	 * Not ready; out of discovery; requests are still taken for the grace time; then new ones are refused and those
	 * under way finish.
	 * @param timeoutMs longest wait for them.
	 * @returns false when some were still under way.
	 */
	async drain(timeoutMs = this.#runtime.config.shutdownTimeoutMs): Promise<boolean> {
		this.#runtime.health.setEndpointReady(this.record.endpoint, false, { gating: true });
		await this.unregister();
		const grace = this.#runtime.config.shutdownGraceMs;
		// Within one process the news is instant.
		if (grace > 0 && this.#runtime.discovery.backend !== "mem")
			await new Promise((resolve) => setTimeout(resolve, grace));
		return this.served.drain(timeoutMs);
	}
}

/**
 * Looks at who serves the same endpoint already: frontends could not tell two models on it apart.
 * @throws DynamoError `Conflict` naming the other model.
 */
export async function checkNeighbours(runtime: DistributedRuntime, record: ModelRecord, target: string): Promise<void> {
	const own = record.card_json;
	const sum = mdcsum(own);
	for (const other of await runtime.discovery.list("v1/mdc")) {
		if (other.type !== "Model" || (other.model_suffix ?? "") !== "") continue;
		if (
			other.namespace !== record.namespace ||
			other.component !== record.component ||
			other.endpoint !== record.endpoint
		) {
			continue;
		}
		const address = formatEndpointAddress({ ...other, name: other.endpoint });
		if (other.card_json.display_name !== own.display_name) {
			const message = `${address} serves the model ${other.card_json.display_name} already; give ${own.display_name} a component of its own, e.g. --endpoint dyn://${record.namespace}.${own.slug.replaceAll(/[^a-z0-9_-]/g, "-")}.${record.endpoint}`;
			throw new DynamoError("Conflict", message, { publicMessage: message });
		}
		if (mdcsum(other.card_json) !== sum) {
			runtime.log
				.child(target)
				.warn(
					"another worker registered this model with other files or limits; frontends send requests only to workers that agree with the first",
					{ model: own.display_name, endpoint: address, other_instance: other.instance_id },
				);
			return;
		}
	}
}

/** One token from a prompt of one: proves that engine and endpoint work. */
export function tokensHealthCheck(model: string): Record<string, unknown> {
	return {
		model,
		token_ids: [1],
		stop_conditions: { max_tokens: 1, ignore_eos: true },
		sampling_options: { temperature: 0 },
		output_options: {},
		eos_token_ids: [],
		annotations: [],
		routing: {},
		_HEALTH_CHECK: true,
	};
}
