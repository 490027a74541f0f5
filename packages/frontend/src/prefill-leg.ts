// SPDX-License-Identifier: Apache-2.0
// The part of a request that runs on a prefill worker, or why there is none: what is bypassed, tried again, and left to
// the decode worker.
import {
	DynamoError,
	type EndpointRecord,
	type LLMEngineOutput,
	mayTryAnother,
	type PreprocessedRequest,
} from "@dynamo-ts/protocols/internal";
import type { RoutingDecision } from "@dynamo-ts/router";
import type { Logger, OutgoingRequest } from "@dynamo-ts/runtime";
import { bypassesPrefill, type ConditionalDisagg } from "./conditional-disagg.js";
import { notReadyError } from "./dispatch-errors.js";
import type { DispatchOptions, Handover, PrefillHost, PrefillStep } from "./dispatch-options.js";
import { failureOf } from "./http-errors.js";
import { isLoss } from "./migration.js";
import { PrefillRun } from "./prefill-run.js";
import type { WorkerSet } from "./worker-set.js";

/** Tells a decode worker that it is to compute the prompt itself; clients cannot set it. */
export const BYPASS_ANNOTATION = "x-bypass-remote-prefill";

/** Most meetings of prefill and decode worker that are arranged for one request. */
const MAX_MEETINGS = 3;
/** When the answer is complete, a prefill worker that has not said that it is done is given this long. */
const RELEASE_MS = 2000;

/** What a frontend says about prefill workers. */
export interface PrefillSettings {
	/** Without a prefill worker a request fails, instead of being computed by the decode worker alone. */
	readonly enforce: boolean;
	/** Undefined: every prompt goes to a prefill worker. */
	readonly conditional: ConditionalDisagg | undefined;
	readonly log: Logger;
}

/** Told how a {@link PrefillLeg} gets on; any of it can happen again. */
export interface PrefillObserver {
	/** A prefill worker is about to get the prompt. */
	onPrefillAttempt(instance: EndpointRecord, decision: RoutingDecision | undefined): void;
	/** The decode worker is next; `remote`: with what a prefill worker has computed, or computes now. */
	onHandover(remote: boolean): void;
	/** A prefill worker has computed the prompt. */
	onPrefilled(outputs: readonly LLMEngineOutput[]): void;
}

export class PrefillLeg implements PrefillStep {
	private readonly decodeSet: WorkerSet;
	private readonly settings: PrefillSettings;
	/** How the request goes to the decode worker. */
	private readonly decode: DispatchOptions;
	private readonly observer: PrefillObserver;
	private readonly choices: number;
	private current: PrefillRun | undefined;
	private meetings = 0;
	/** Made anew whenever what is under way is over: what comes later is for nobody. */
	private turn = {};
	/** The run that was blamed although its prompt was computed; that happens once. */
	private doubted: PrefillRun | undefined;

	/**
	 * @param decode how the request goes to the decode worker: deadlines, the worker that the client asked for, spans.
	 * @param choices of the request.
	 */
	constructor(
		decodeSet: WorkerSet,
		settings: PrefillSettings,
		decode: DispatchOptions,
		choices: number,
		observer: PrefillObserver,
	) {
		this.decodeSet = decodeSet;
		this.settings = settings;
		this.decode = decode;
		this.choices = choices;
		this.observer = observer;
	}

	run(request: OutgoingRequest, tokenIds: readonly number[], host: PrefillHost): void {
		this.cancel();
		const body = request.payload as PreprocessedRequest;
		const pin = body.routing.prefill_worker_id;
		const { group, router } = this.decodeSet;
		const set = pin === undefined ? group.prefillSet() : group.prefillSetOf(pin);
		if (set === undefined || this.meetings >= MAX_MEETINGS) {
			this.computeLocally(body, host, notReadyError(this.decodeSet.name), undefined);
			return;
		}
		if (pin === undefined && router.name === "direct") {
			const message =
				"the router mode is direct: name the prefill worker in x-dynamo-prefill-instance-id or nvext.prefill_worker_id";
			const error = new DynamoError("InvalidArgument", message);
			queueMicrotask(() => host.onPrefillError(error));
			return;
		}
		if (pin !== undefined) {
			this.compute(set, request, tokenIds, host);
			return;
		}
		const asked = this.lookUps(set, body, tokenIds);
		if (asked === undefined) {
			this.choose(set, request, tokenIds, host);
			return;
		}
		const { turn } = this;
		void asked.then(() => {
			if (turn === this.turn) this.choose(set, request, tokenIds, host);
		});
	}

	/** Asks elsewhere what the choice between decode and prefill worker needs to know; undefined: all is known. */
	private lookUps(
		set: WorkerSet,
		{ routing }: PreprocessedRequest,
		tokenIds: readonly number[],
	): Promise<unknown> | undefined {
		const { conditional } = this.settings;
		if (conditional === undefined) return undefined;
		const request = { tokenIds, loraName: routing.lora_name, cacheSalt: routing.cache_salt };
		const onDecode = this.decodeSet.router.lookUp(request);
		const onPrefill = conditional.policy === "isl_bounding" ? undefined : set.router.lookUp(request);
		return onDecode === undefined && onPrefill === undefined ? undefined : Promise.all([onDecode, onPrefill]);
	}

	/** Leaves the prompt to the decode worker, or gives it to a prefill worker. */
	private choose(set: WorkerSet, request: OutgoingRequest, tokenIds: readonly number[], host: PrefillHost): void {
		const body = request.payload as PreprocessedRequest;
		const preferred = this.bypass(set, body, tokenIds);
		if (preferred === undefined) {
			this.compute(set, request, tokenIds, host);
			return;
		}
		this.observer.onHandover(false);
		host.onHandover(localHandover(body, preferred));
	}

	private compute(set: WorkerSet, request: OutgoingRequest, tokenIds: readonly number[], host: PrefillHost): void {
		const body = request.payload as PreprocessedRequest;
		const named = { ...request, id: host.requestId };
		const run: PrefillRun = new PrefillRun(set, named, tokenIds, this.choices, this.decode, host.attemptsMade, {
			onAttempt: (instance, decision) => this.observer.onPrefillAttempt(instance, decision),
			onMeeting: () => this.meetings++,
			onHandover: (handover) => {
				this.observer.onHandover(true);
				host.onHandover(handover);
			},
			onPrefilled: (outputs) => this.observer.onPrefilled(outputs),
			onAnswer: (items) => host.onAnswer(items),
			onFailure: (error) => {
				// The decode worker waits for blocks that nobody sends now; if it does not, all is well.
				if (run.meeting && !host.onWithdrawn()) return;
				if (isClientsOrFull(error)) host.onPrefillError(error);
				else if (run.meeting && isLoss(error)) this.run(request, tokenIds, host);
				else this.computeLocally(body, host, error, error);
			},
		});
		this.current = run;
		run.start();
	}

	get running(): boolean {
		return this.current?.over === false;
	}

	mayBeBlamed(error: DynamoError): boolean {
		const run = this.current;
		if (run?.meeting !== true || isClientsOrFull(error)) return false;
		// A prefill worker that is done can be lost before its blocks are across; but not always is that the reason.
		if (!run.completed) return true;
		this.doubted ??= run;
		return this.doubted === run;
	}

	cancel(): void {
		this.turn = {};
		this.current?.cancel();
		this.current = undefined;
	}

	release(): void {
		this.turn = {};
		const run = this.current;
		this.current = undefined;
		if (run !== undefined && !run.over) setTimeout(() => run.cancel(), RELEASE_MS).unref();
	}

	/** @param cause what the prefill worker failed with; undefined: there was none to be had. */
	private computeLocally(
		body: PreprocessedRequest,
		host: PrefillHost,
		error: DynamoError,
		cause: DynamoError | undefined,
	): void {
		const { enforce, log } = this.settings;
		const { name } = this.decodeSet;
		if (enforce) {
			// A worker's own failure says more than that there is nobody else.
			const lost = cause === undefined || isLoss(cause) || cause.errorClass === "Unavailable";
			const told = lost
				? new DynamoError(
						"Unavailable",
						`no prefill worker of model ${name} could compute the prompt, and --enforce-disagg leaves it to none else`,
						{ reason: "backend.unavailable", cause: error },
					)
				: error;
			queueMicrotask(() => host.onPrefillError(told));
			return;
		}
		const fields = { model: name, error: error.message };
		log.warn("no prefill worker computed the prompt; the decode worker does", fields, this.decode.trace?.parent);
		this.observer.onHandover(false);
		host.onHandover(localHandover(body, undefined));
	}

	/** The decode worker that should compute the prompt itself; undefined: a prefill worker should. */
	private bypass(
		prefillSet: WorkerSet,
		body: PreprocessedRequest,
		tokenIds: readonly number[],
	): EndpointRecord | undefined {
		const { conditional } = this.settings;
		const { decodeSet } = this;
		if (conditional === undefined || decodeSet.router.explain === undefined) return undefined;
		const { lora_name: loraName, cache_salt: cacheSalt, dp_rank: dpRank, prefill_dp_rank } = body.routing;
		const routing = { tokenIds, loraName, cacheSalt };
		const onDecode = { ...routing, dpRank };
		const decode = this.decode.pinned ?? decodeSet.router.pick(decodeSet.candidates(), onDecode);
		if (decode === undefined) return undefined;
		const { cachedTokens, decodeBlocks } = decodeSet.router.explain(decode.instance_id, onDecode);
		let prefillLoad: number | undefined;
		if (conditional.policy !== "isl_bounding") {
			const onPrefill = { ...routing, dpRank: prefill_dp_rank };
			const chosen = prefillSet.router.pick(prefillSet.candidates(), onPrefill);
			const decision = chosen && prefillSet.router.explain?.(chosen.instance_id, onPrefill);
			const most = prefillSet.card.runtime_config?.max_num_batched_tokens ?? 0;
			if (decision !== undefined && most > 0) prefillLoad = decision.activePrefillTokens / most;
		}
		const total = decodeSet.cardOf(decode.instance_id)?.runtime_config?.total_kv_blocks ?? 0;
		const decodeLoad = total > 0 ? decodeBlocks / total : undefined;
		const promptTokens = tokenIds.length;
		return bypassesPrefill(conditional, { promptTokens, cachedTokens, prefillLoad, decodeLoad }) ? decode : undefined;
	}
}

function localHandover(body: PreprocessedRequest, preferred: EndpointRecord | undefined): Handover {
	const { prefill_worker_id: _id, prefill_dp_rank: _rank, ...routing } = body.routing;
	return {
		body: { routing, annotations: [...body.annotations, BYPASS_ANNOTATION] },
		...(preferred === undefined ? {} : { preferred }),
	};
}

/** The request itself was refused, or there is no room for it: another worker must not do it instead. */
function isClientsOrFull(error: DynamoError): boolean {
	if (error.errorClass === "Cancelled" || (isLoss(error) && mayTryAnother(error))) return false;
	const { http } = failureOf(error);
	return http.status < 500 || http.status === 529 || http.status === 501;
}
