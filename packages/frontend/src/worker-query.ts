// SPDX-License-Identifier: Apache-2.0
// `nvext.annotations: ["query_instance_id:"]`: which workers a request would go to, without sending it.
import type { EndpointRecord, PreprocessedRequest } from "@dynamo-ts/protocols/internal";
import type { RoutingRequest } from "@dynamo-ts/router";
import type { AnswerIdentity } from "./chunk-format.js";
import { notReadyError } from "./dispatch-errors.js";
import { type LegWorkers, workerIds } from "./nvext-report.js";
import type { WorkerSet } from "./worker-set.js";

const QUERY = "query_instance_id";

/** The client wants to know the workers, and nothing else. */
export function isWorkerQuery(annotations: readonly string[] | null | undefined): boolean {
	return annotations?.some((annotation) => annotation.split(":", 1)[0] === QUERY) ?? false;
}

/**
 * The workers that the request would get now; nothing is reserved.
 * @param pinned the worker that the client asked for.
 * @throws DynamoError as the request would fail with.
 */
export async function queryWorkers(
	set: WorkerSet,
	body: PreprocessedRequest,
	pinned: EndpointRecord | undefined,
): Promise<Pick<LegWorkers, "prefillId" | "prefillRank" | "decodeId" | "decodeRank">> {
	const { lora_name: loraName, cache_salt: cacheSalt, dp_rank, prefill_dp_rank, prefill_worker_id } = body.routing;
	const common: RoutingRequest = { tokenIds: body.token_ids, loraName, cacheSalt };
	const decode = await chosen(set, { ...common, dpRank: dp_rank }, pinned);
	const prefillSet =
		prefill_worker_id === undefined ? set.group.prefillSet() : set.group.prefillSetOf(prefill_worker_id);
	const named = prefill_worker_id === undefined ? undefined : prefillSet?.member(prefill_worker_id);
	const prefill =
		set.takesPrefill && prefillSet !== undefined
			? await chosen(prefillSet, { ...common, dpRank: prefill_dp_rank }, named)
			: decode;
	return { prefillId: prefill.id, prefillRank: prefill.rank, decodeId: decode.id, decodeRank: decode.rank };
}

async function chosen(
	set: WorkerSet,
	request: RoutingRequest,
	pinned: EndpointRecord | undefined,
): Promise<{ id: bigint; rank: number | undefined }> {
	await set.router.lookUp(request);
	const instance = pinned ?? set.router.pick(set.candidates(), request);
	if (instance === undefined) throw set.router.refusal() ?? notReadyError(set.name);
	const id = instance.instance_id;
	return { id, rank: set.router.explain?.(id, request).dpRank };
}

/** The answer, as Dynamo's: a choice without text, and `nvext` with the workers and the prompt's tokens. */
export function queryAnswer(
	kind: "chat" | "completions",
	stream: boolean,
	{ requestId, created, model }: AnswerIdentity,
	workers: Parameters<typeof workerIds>[0],
	tokenIds: readonly number[],
): string {
	const nvext = `{"worker_id":${workerIds(workers)},"token_ids":${JSON.stringify(tokenIds)}}`;
	const message = stream
		? { delta: { role: "assistant" } }
		: { message: { content: null, refusal: null, role: "assistant" } };
	const answer =
		kind === "chat"
			? {
					id: `chatcmpl-${requestId}`,
					choices: [{ index: 0, ...message, finish_reason: null, logprobs: null }],
					created,
					model,
					object: stream ? "chat.completion.chunk" : "chat.completion",
				}
			: {
					id: `cmpl-${requestId}`,
					choices: [{ text: "", index: 0 }],
					created,
					model,
					system_fingerprint: null,
					object: "text_completion",
					usage: null,
				};
	return `${JSON.stringify(answer).slice(0, -1)},"nvext":${nvext}}`;
}
