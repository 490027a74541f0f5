// SPDX-License-Identifier: Apache-2.0
import { DYNAMO_VERSION, stringifyJson } from "@dynamo-ts/protocols/internal";
import { METRICS_CONTENT_TYPE } from "@dynamo-ts/runtime";
import type { FastifyInstance } from "fastify";
import { sendJson } from "../answers.js";
import type { FrontendState } from "../frontend-state.js";

/** What agents ask beside the metrics, else they take them for wrong: Datadog's checks for NIM and for vLLM. */
const VERSIONS = {
	"/v1/version": JSON.stringify({ release: DYNAMO_VERSION, api: DYNAMO_VERSION }),
	"/version": JSON.stringify({ version: DYNAMO_VERSION }),
};

export const VERSION_PATHS: readonly string[] = Object.keys(VERSIONS);

/** `/health`, `/live`, `/metrics` and the versions. They answer while draining too, each in its own way. */
export function addHealthRoutes(app: FastifyInstance, state: FrontendState): void {
	const { paths } = state.config;

	app.get(paths.live, (_request, reply) => {
		reply.hijack();
		if (state.stage === "ready") sendJson(reply.raw, 200, '{"status":"live","message":"Service is live"}');
		else sendJson(reply.raw, 503, '{"status":"shutting_down","message":"Service is shutting down"}');
	});

	app.get(paths.health, (_request, reply) => {
		reply.hijack();
		if (state.stage === "ready") sendJson(reply.raw, 200, healthBody(state));
		else sendJson(reply.raw, 503, '{"status":"not_ready","stage":"draining","message":"Service is not ready"}');
	});

	for (const path of VERSION_PATHS) {
		app.get(path, (_request, reply) => {
			reply.hijack();
			sendJson(reply.raw, 200, VERSIONS[path as keyof typeof VERSIONS]);
		});
	}

	app.get(paths.metrics, async (_request, reply) => {
		reply.hijack();
		const page = await state.metrics.scrape(state.runtime.metrics);
		if (reply.raw.destroyed) return;
		reply.raw.writeHead(200, { "content-type": METRICS_CONTENT_TYPE, "content-length": Buffer.byteLength(page) });
		reply.raw.end(page);
	});
}

function healthBody(state: FrontendState): string {
	const records = state.watcher.instances();
	const endpoints = records.map((record) => `dyn://${record.namespace}.${record.component}.${record.endpoint}`);
	const instances = records.map((record) => ({
		component: record.component,
		endpoint: record.endpoint,
		namespace: record.namespace,
		instance_id: record.instance_id,
		transport: record.transport,
		device_type: record.device_type,
		request_plane_codec: record.request_plane_codec,
	}));
	return stringifyJson({ status: "healthy", endpoints: [...new Set(endpoints)].sort(), instances });
}
