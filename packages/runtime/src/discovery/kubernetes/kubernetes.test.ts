// SPDX-License-Identifier: Apache-2.0
// The kubernetes backend against an API server that fails, forgets and asks for tokens.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { EndpointRecord } from "@dynamo-ts/protocols/internal";
import {
	CertificateAuthority,
	FakeKubeApi,
	type FakeKubeApiOptions,
	findOpenssl,
	titled,
} from "@dynamo-ts/testing/internal";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { EnvReader } from "../../config.js";
import { createLogger } from "../../observability/logging.js";
import type { Discovery, DiscoveryEvent } from "../discovery.js";
import { type KubernetesConfig, readKubernetesConfig } from "./kube-config.js";
import { KubernetesDiscovery } from "./kubernetes.js";

const CRS = "/apis/nvidia.com/v1alpha1/namespaces/prod/dynamoworkermetadatas";
const PATIENCE = { timeout: 15_000, interval: 10 };

let api: FakeKubeApi;
let folder: string;
let lines: string[];
const opened: KubernetesDiscovery[] = [];

beforeEach(async () => {
	folder = mkdtempSync(join(tmpdir(), "dynamo-kube-"));
	lines = [];
	await serve();
});
afterEach(async () => {
	await Promise.all(opened.splice(0).map((discovery) => discovery.close()));
	await api.suspend();
	rmSync(folder, { recursive: true, force: true });
});

async function serve(options: FakeKubeApiOptions = {}): Promise<void> {
	api = await FakeKubeApi.start(options);
	writeFileSync(join(folder, "kubeconfig"), api.kubeconfig());
}

async function open(
	env: Record<string, string>,
	overrides: Partial<KubernetesConfig> = {},
): Promise<KubernetesDiscovery> {
	const settings = { KUBECONFIG: join(folder, "kubeconfig"), POD_NAMESPACE: "prod", ...env };
	const config = { ...readKubernetesConfig(new EnvReader(settings)), podInfoFolder: folder, ...overrides };
	const log = createLogger({ filter: "info", format: "readable", ansi: false, localTime: false }, "test", (line) =>
		lines.push(line),
	);
	const discovery = await KubernetesDiscovery.open({ config, log });
	opened.push(discovery);
	return discovery;
}

const pod = (name: string) => ({ POD_NAME: name, POD_UID: `uid-${name}` });
const ready = (...names: string[]) => {
	for (const name of names) api.setSlice("prod", [{ name, uid: `uid-${name}`, ready: true }]);
};

function endpoint(discovery: Discovery, name = "generate"): EndpointRecord {
	return {
		type: "Endpoint",
		namespace: "dynamo",
		component: "backend",
		endpoint: name,
		instance_id: discovery.instanceId,
		transport: { tcp: "127.0.0.1:1/x" },
		request_plane_codec: "msgpack",
	};
}

async function follow(discovery: Discovery): Promise<DiscoveryEvent[]> {
	const events: DiscoveryEvent[] = [];
	await discovery.watch("v1/instances", (event) => events.push(event));
	return events;
}

const types = (events: readonly DiscoveryEvent[]) => events.map((event) => event.type);
const requests = (match: RegExp) =>
	api.requests.map(({ method, url }) => `${method} ${url}`).filter((line) => match.test(line));

describe("kubernetes discovery", () => {
	it("lists and watches once per kind, whoever asks, and writes nothing before there is something to write", async () => {
		const reader = await open(pod("fe"));
		await reader.list("v1/instances");
		await follow(reader);
		await follow(reader);
		await vi.waitFor(() => expect(api.requests).toHaveLength(4), PATIENCE);
		const selector = "labelSelector=nvidia.com%2Fdynamo-discovery-enabled%3Dtrue";
		const watch = "watch=true&timeoutSeconds=290&allowWatchBookmarks=true&resourceVersion=1000";
		const slices = "/apis/discovery.k8s.io/v1/namespaces/prod/endpointslices";
		expect(requests(/./).sort()).toEqual(
			[
				`GET ${slices}?limit=500&${selector}`,
				`GET ${slices}?${watch}&${selector}`,
				`GET ${CRS}?limit=500`,
				`GET ${CRS}?${watch}`,
			].sort(),
		);
		await reader.close();
		expect(requests(/PATCH|DELETE/)).toEqual([]);
	});

	it("writes an empty resource before its first record, the complete one with each change, and an empty one when it leaves", async () => {
		const worker = await open(pod("w"));
		await worker.put(endpoint(worker, "a"));
		await worker.put(endpoint(worker, "b"));
		await worker.close();
		const patches = api.requests.filter(({ method }) => method === "PATCH");
		for (const { url, headers } of patches) {
			expect(url).toBe(`${CRS}/w?force=true&fieldManager=dynamo-worker`);
			expect(headers["content-type"]).toBe("application/apply-patch+yaml");
		}
		// biome-ignore lint/suspicious/noExplicitAny: bodies of requests
		const endpoints = patches.map(({ body }) => Object.keys((body as any).spec.data.endpoints));
		const key = (name: string) => `dynamo/backend/${name}/${worker.instanceId.toString(16)}`;
		expect(endpoints).toEqual([[], [key("a")], [key("a"), key("b")], []]);
		expect(api.get(CRS, "w")).toBeDefined();
	});

	it("sees a worker while its pod is ready", async () => {
		const [reader, worker] = [await open(pod("fe")), await open(pod("w"))];
		const events = await follow(reader);
		await worker.put(endpoint(worker));
		ready("w");
		await vi.waitFor(() => expect(types(events)).toEqual(["put"]), PATIENCE);
		api.setSlice("prod", [{ name: "w", uid: "uid-w", ready: false }]);
		await vi.waitFor(() => expect(types(events)).toEqual(["put", "delete"]), PATIENCE);
		api.setSlice("prod", [{ name: "w", uid: "uid-of-another-pod", ready: true }]);
		ready("w");
		await vi.waitFor(() => expect(types(events)).toEqual(["put", "delete", "put"]), PATIENCE);
		api.removeSlice("prod", "w-slice");
		await vi.waitFor(() => expect(types(events)).toEqual(["put", "delete", "put", "delete"]), PATIENCE);
	});

	it("container mode: old content is removed first, each container stands for itself", async () => {
		api.put(CRS, "p-engine-0", { spec: { data: {} } });
		const container = (name: string) => ({ ...pod("p"), DYN_KUBE_DISCOVERY_MODE: "container", CONTAINER_NAME: name });
		const engine = await open(container("engine-0"));
		const main = await open(container("main"));
		expect(requests(/DELETE/)).toEqual([`DELETE ${CRS}/p-engine-0`, `DELETE ${CRS}/p`]);
		const events = await follow(main);
		await engine.put(endpoint(engine));
		await main.put(endpoint(main));
		expect(requests(/PATCH/)).toHaveLength(2);
		api.setPod("prod", "p", "uid-p", { "engine-0": true, main: false });
		await vi.waitFor(() => expect(types(events)).toEqual(["put"]), PATIENCE);
		expect(events[0]?.key).toContain(engine.instanceId.toString(16));
		api.setPod("prod", "p", "uid-p", { "engine-0": false, main: true });
		await vi.waitFor(() => expect(types(events)).toEqual(["put", "delete", "put"]), PATIENCE);
	});

	it("watches that end, break, are refused or expire lose nothing and forget nothing", async () => {
		const [reader, worker] = [await open(pod("fe")), await open(pod("w"))];
		ready("w");
		const events = await follow(reader);
		await worker.put(endpoint(worker, "0"));
		await vi.waitFor(() => expect(events).toHaveLength(1), PATIENCE);
		const disturbances: (() => void)[] = [
			() => api.dropWatches("end"),
			() => api.dropWatches("cut"),
			() => api.expire(),
			() => {
				api.fail(/watch=true/, 500, 4);
				api.dropWatches();
			},
			() => {
				api.expire();
				api.fail(/GET .*limit=500/, 403, 4);
			},
			() => api.bookmark(),
		];
		for (const [index, disturb] of disturbances.entries()) {
			disturb();
			await worker.put(endpoint(worker, String(index + 1)));
			await vi.waitFor(() => expect(events).toHaveLength(index + 2), PATIENCE);
		}
		expect(types(events)).toEqual(Array(7).fill("put"));
		expect(lines.filter((line) => line.includes("cannot be used")).length).toBeLessThan(9);
	}, 60_000);

	it("a resource that somebody deletes is written again", async () => {
		const [reader, worker] = [await open(pod("fe")), await open(pod("w"))];
		ready("w");
		const events = await follow(reader);
		await worker.list("v1/instances");
		await worker.put(endpoint(worker));
		await vi.waitFor(() => expect(events).toHaveLength(1), PATIENCE);
		await vi.waitFor(() => expect(api.watching).toBe(4), PATIENCE);
		api.remove(CRS, "w");
		await vi.waitFor(() => expect(types(events)).toEqual(["put", "delete", "put"]), PATIENCE);
	});

	it("a change that is refused fails with the reason and is undone", async () => {
		const worker = await open(pod("w"));
		await worker.put(endpoint(worker, "a"));
		api.fail(/PATCH/, 403);
		await expect(worker.put(endpoint(worker, "b"))).rejects.toThrow(/HTTP 403.*the service account needs create, get/);
		await worker.put(endpoint(worker, "c"));
		// biome-ignore lint/suspicious/noExplicitAny: an object of the API
		const { endpoints } = (api.get(CRS, "w") as any).spec.data;
		expect(Object.keys(endpoints).map((key) => key.split("/")[2])).toEqual(["a", "c"]);
		api.fail(/PATCH/, 404);
		await expect(worker.put(endpoint(worker, "d"))).rejects.toThrow(/custom resource definition .* installed\?/);
		api.fail(/PATCH/, 503, 2);
		await worker.put(endpoint(worker, "e"));
	});

	it("a removal does not wait for an API server that is away, and is made up for", async () => {
		const worker = await open(pod("w"));
		ready("w");
		const events = await follow(worker);
		await worker.put(endpoint(worker));
		await vi.waitFor(() => expect(types(events)).toEqual(["put"]), PATIENCE);
		await api.suspend();
		await worker.delete(endpoint(worker));
		expect(lines.join()).toContain("could not be taken out of the custom resource");
		await api.resume();
		await vi.waitFor(() => expect(types(events)).toEqual(["put", "delete"]), PATIENCE);
	});

	it("files of the downward API win over variables", async () => {
		writeFileSync(join(folder, "pod_name"), "from-file\n");
		writeFileSync(join(folder, "pod_uid"), "  ");
		const worker = await open(pod("w"));
		await worker.put(endpoint(worker));
		expect(api.get(CRS, "from-file")).toMatchObject({
			metadata: { ownerReferences: [{ name: "from-file", uid: "uid-w" }] },
		});
	});

	it("takes the namespace default with a warning, and never the kubeconfig's", async () => {
		const worker = await open({ ...pod("w"), POD_NAMESPACE: "" });
		await worker.put(endpoint(worker));
		expect(requests(/PATCH/)[0]).toContain("/namespaces/default/");
		expect(lines.join()).toContain("POD_NAMESPACE is not set");
	});

	it.each([
		[{ POD_UID: "u" }, /POD_NAME is not available from file or environment/],
		[{ POD_NAME: "n" }, /POD_UID is not available/],
		[{ ...pod("p"), DYN_KUBE_DISCOVERY_MODE: "container" }, /CONTAINER_NAME is not available/],
		[{ ...pod("p"), DYN_KUBE_DISCOVERY_MODE: "host" }, /DYN_KUBE_DISCOVERY_MODE=host is not valid/],
		[
			{ ...pod("p"), KUBECONFIG: "/nowhere" },
			/no way to the Kubernetes API: kubeconfig \/nowhere: .*; in the cluster: KUBERNETES_SERVICE_HOST and/,
		],
	] as [Record<string, string>, RegExp][])("refuses to start with %j", async (env, message) => {
		await expect(open(env)).rejects.toThrow(message);
	});
});

const openssl = findOpenssl();
const missing = openssl.missing;
describe.skipIf(missing)(titled("in the cluster", missing), () => {
	it("uses the service account's token, also after it changed, and its certificate", async () => {
		const authority = new CertificateAuthority();
		try {
			const { cert, key } = authority.sign();
			await api.suspend();
			const tls = { cert: readFileSync(cert, "utf8"), key: readFileSync(key, "utf8") };
			await serve({ tls, token: "secret" });
			writeFileSync(join(folder, "ca.crt"), readFileSync(authority.ca));
			writeFileSync(join(folder, "token"), "secret\n");
			const cluster = {
				KUBECONFIG: "/nowhere",
				KUBERNETES_SERVICE_HOST: "127.0.0.1",
				KUBERNETES_SERVICE_PORT: String(api.port),
			};
			const worker = await open({ ...pod("w"), ...cluster }, { serviceAccountFolder: folder });
			ready("w");
			await worker.put(endpoint(worker));
			const events = await follow(worker);
			await vi.waitFor(() => expect(types(events)).toEqual(["put"]), PATIENCE);
			writeFileSync(join(folder, "token"), "wrong");
			const other = await open({ ...pod("x"), ...cluster }, { serviceAccountFolder: folder });
			await expect(other.put(endpoint(other))).rejects.toThrow(/HTTP 401/);
		} finally {
			authority.remove();
		}
	});
});
