// SPDX-License-Identifier: Apache-2.0
// GET and POST /busy_threshold: the limits above which workers of a model get no more requests, read and set while running.
import type { ServerResponse } from "node:http";
import { type BusyThresholdRequest, HttpError, parseBusyThresholdRequest } from "@dynamo-ts/protocols/internal";
import type { BusyThresholds } from "@dynamo-ts/router";
import type { FastifyInstance } from "fastify";
import { sendJson } from "../answers.js";
import type { FrontendState } from "../frontend-state.js";
import { ClientGoneError, readBody } from "../request-body.js";

const PATH = "/busy_threshold";

/** Adds the two routes, unless the routes for operators are switched off. */
export function addBusyThresholdRoutes(app: FastifyInstance, state: FrontendState): void {
	if (state.config.disableAdminApi) return;
	app.get(PATH, (_request, reply) => {
		reply.hijack();
		const thresholds = state.manager.all().map((model) => bodyOf(model.name, model.busyThresholds() ?? {}));
		sendJson(reply.raw, 200, JSON.stringify({ thresholds }));
	});
	app.post(PATH, async (request, reply) => {
		reply.hijack();
		try {
			const body = await readBody(request.raw, reply.raw, state.config.bodyLimitBytes);
			answer(state, parseBusyThresholdRequest(body), reply.raw);
		} catch (error) {
			if (error instanceof ClientGoneError) return;
			if (!(error instanceof HttpError)) throw error;
			// JSON that does not have the types is told apart from what is no JSON.
			const types = error.message.startsWith("Failed to deserialize") && !/EOF|expected value/.test(error.message);
			sendError(reply.raw, error.status === 400 && types ? 422 : error.status, error.message);
		}
	});
}

function answer(state: FrontendState, request: BusyThresholdRequest, response: ServerResponse): void {
	const fault = faultOf(request);
	if (fault !== undefined) {
		sendError(response, 400, fault);
		return;
	}
	const wanted: BusyThresholds = {
		activeDecodeBlocks: request.active_decode_blocks_threshold ?? undefined,
		activePrefillTokens: numberOf(request.active_prefill_tokens_threshold),
		activePrefillTokensFrac: request.active_prefill_tokens_threshold_frac ?? undefined,
	};
	const model = state.manager.find(request.model);
	if (Object.values(wanted).some((limit) => limit !== undefined)) {
		if (model?.busyThresholds() === undefined) {
			sendError(response, 404, `Model '${request.model}' not found. Thresholds can only be set for discovered models.`);
			return;
		}
		model.limit(wanted);
		state.log.info("Updated busy thresholds", { model: request.model, ...model.busyThresholds() });
	}
	sendJson(response, 200, JSON.stringify(bodyOf(request.model, model?.busyThresholds() ?? {})));
}

function faultOf(request: BusyThresholdRequest): string | undefined {
	const { active_decode_blocks_threshold: blocks, active_prefill_tokens_threshold_frac: tokens } = request;
	if (typeof blocks === "number" && !(blocks >= 0 && blocks <= 1)) {
		return `active_decode_blocks_threshold must be between 0.0 and 1.0, got ${blocks}`;
	}
	if (typeof tokens === "number" && tokens < 0) {
		return `active_prefill_tokens_threshold_frac must be a finite value greater than or equal to 0.0, got ${tokens}`;
	}
	return undefined;
}

function numberOf(value: number | bigint | null | undefined): number | undefined {
	return value === null || value === undefined ? undefined : Number(value);
}

function bodyOf(model: string, thresholds: BusyThresholds): Record<string, unknown> {
	return {
		model,
		active_decode_blocks_threshold: thresholds.activeDecodeBlocks ?? null,
		active_prefill_tokens_threshold: thresholds.activePrefillTokens ?? null,
		active_prefill_tokens_threshold_frac: thresholds.activePrefillTokensFrac ?? null,
	};
}

function sendError(response: ServerResponse, status: number, error: string): void {
	sendJson(response, status, JSON.stringify({ error }));
}
