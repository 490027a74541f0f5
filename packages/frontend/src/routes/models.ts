// SPDX-License-Identifier: Apache-2.0
import type { ServerResponse } from "node:http";
import { HttpError } from "@dynamo-ts/protocols/internal";
import type { FastifyInstance } from "fastify";
import { sendFailure, sendJson } from "../answers.js";
import type { FrontendState } from "../frontend-state.js";
import type { Failure } from "../http-errors.js";
import type { Model } from "../model.js";

const READY_SUFFIX = "/ready";

/** The list of models, one model, and whether it is ready. Ids may contain slashes, escaped or not. */
export function addModelRoutes(app: FastifyInstance, state: FrontendState): void {
	const path = state.config.paths.models;

	app.get(path, (_request, reply) => {
		reply.hijack();
		const data = state.manager.ready().map(modelObject);
		sendJson(reply.raw, 200, JSON.stringify({ object: "list", data }));
	});

	app.get<{ Params: { "*": string } }>(`${path}/*`, (request, reply) => {
		const id = request.params["*"];
		if (id === "") {
			reply.callNotFound();
			return;
		}
		reply.hijack();
		const model = state.manager.find(id);
		if (model?.ready) {
			sendJson(reply.raw, 200, JSON.stringify(modelObject(model)));
			return;
		}
		if (id.endsWith(READY_SUFFIX)) sendReadiness(reply.raw, state, id.slice(0, -READY_SUFFIX.length));
		else sendModelNotFound(reply.raw, state, id);
	});
}

function modelObject(model: Model): Record<string, unknown> {
	return {
		id: model.name,
		object: "model",
		created: Math.floor(Date.now() / 1000),
		owned_by: "nvidia",
		context_window: model.contextWindow,
	};
}

function sendReadiness(response: ServerResponse, state: FrontendState, id: string): void {
	const model = state.manager.find(id);
	if (model === undefined) {
		sendModelNotFound(response, state, id);
		return;
	}
	const readiness = model.readiness();
	sendJson(response, readiness.ready ? 200 : 503, JSON.stringify(readiness));
}

/** The failure for a model that is not there. OpenAI's object names those that are. */
export function modelNotFound(state: FrontendState, id: string): Failure {
	const served = state.manager.ready().map(({ name }) => name);
	const hint = served.length === 0 ? "no model is being served" : `served: ${served.join(", ")}`;
	const error = new HttpError(404, "Model not found", { code: "model_not_found", param: "model" });
	return state.failureOf(error, { detail: `The model \`${id}\` does not exist (${hint})` });
}

function sendModelNotFound(response: ServerResponse, state: FrontendState, id: string): void {
	const failure = modelNotFound(state, id);
	state.countFailure(failure);
	sendFailure(response, failure);
}
