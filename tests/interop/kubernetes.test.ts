// SPDX-License-Identifier: Apache-2.0
// Real and our processes that find each other through custom resources of a (simulated) Kubernetes API server.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
	type Child,
	FakeKubeApi,
	fileDiscoveryEnv,
	findRealDynamo,
	freePort,
	type HttpChild,
	http,
	listsModel,
	startDynamo,
	startOwnHttp,
	startRealFrontend,
	startRealMocker,
	testModel,
	titled,
	until,
} from "@dynamo-ts/testing/internal";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

const NAMESPACE = "prod";
const MODEL = "mock";
const peer = findRealDynamo();
const hf = testModel("hf");
const missing = hf.missing || peer.missing;

for (const mode of ["pod", "container"] as const) {
	describe.skipIf(missing)(titled(`kubernetes discovery between real and our processes, ${mode} mode`, missing), () => {
		const python = peer.path;
		const modelPath = hf.path;
		const folder = mkdtempSync(join(tmpdir(), "dynamo-kube-"));
		const children: Child[] = [];
		let api: FakeKubeApi;
		let frontends: { real: HttpChild; our: HttpChild };
		let workers: { real: Child; our: Child };

		/** The settings of a pod's process, and the news that it is ready or not. */
		const ready = (pod: string, is: boolean): void => {
			if (mode === "pod") api.setSlice(NAMESPACE, [{ name: pod, uid: `uid-${pod}`, ready: is }]);
			else api.setPod(NAMESPACE, pod, `uid-${pod}`, { engine: is });
		};
		const env = (pod: string): Record<string, string> => ({
			...fileDiscoveryEnv(folder),
			DYN_DISCOVERY_BACKEND: "kubernetes",
			DYN_KUBE_DISCOVERY_MODE: mode,
			DYN_EVENT_PLANE: "zmq",
			DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS: '["generate"]',
			KUBECONFIG: join(folder, "kubeconfig"),
			POD_NAME: pod,
			POD_UID: `uid-${pod}`,
			POD_NAMESPACE: NAMESPACE,
			CONTAINER_NAME: "engine",
		});
		const ask = (frontend: HttpChild, stream: boolean) =>
			http(`${frontend.url}/v1/chat/completions`, {
				body: { model: MODEL, messages: [{ role: "user", content: "Hi" }], max_tokens: 8, stream },
			});
		const instances = async (frontend: HttpChild): Promise<string[]> => {
			const health = (await http(`${frontend.url}/health`)).json;
			return (health.instances as { endpoint: string; instance_id: number }[])
				.filter(({ endpoint }) => endpoint === "generate")
				.map(({ instance_id }) => String(instance_id))
				.sort();
		};

		beforeAll(async () => {
			api = await FakeKubeApi.start();
			writeFileSync(join(folder, "kubeconfig"), api.kubeconfig());
			for (const pod of ["real-0", "our-0"]) ready(pod, true);
			const system = async () => ({ DYN_SYSTEM_PORT: String(await freePort()) });
			const args = ["--speedup-ratio", "100"];
			const real = startRealMocker(python, { ...env("real-0"), ...(await system()) }, modelPath, MODEL, args);
			const our = startDynamo(["mocker", "--model-path", modelPath, "--model-name", MODEL, ...args], {
				env: { ...env("our-0"), ...(await system()) },
			});
			workers = { real, our };
			children.push(real, our);
			const starting = [
				startRealFrontend(python, env("fe-real"), MODEL),
				startOwnHttp("frontend", [], env("fe-our"), MODEL),
			] as const;
			const [realFrontend, ourFrontend] = await Promise.all(starting);
			frontends = { real: realFrontend, our: ourFrontend };
			children.push(realFrontend.child, ourFrontend.child);
		}, 120_000);
		afterAll(async () => {
			await Promise.all(children.map((child) => child.stop(5000)));
			await api?.suspend();
			rmSync(folder, { recursive: true, force: true });
		});

		test("both frontends know both workers by the ids of their resources, and serve", async () => {
			for (const frontend of [frontends.real, frontends.our]) {
				await until("both workers are seen", async () => (await instances(frontend)).length === 2, frontend);
				for (let i = 0; i < 4; i++) {
					const unary = await ask(frontend, false);
					expect(unary.status).toBe(200);
					expect(unary.json.usage.completion_tokens).toBe(8);
					const streamed = await ask(frontend, true);
					expect(streamed.body).toContain("data: [DONE]");
				}
			}
			expect(await instances(frontends.our)).toEqual(await instances(frontends.real));
		});

		test("readiness alone makes a worker go and come back, for both frontends", async () => {
			const all = await instances(frontends.real);
			for (const pod of ["real-0", "our-0"]) {
				ready(pod, false);
				for (const frontend of [frontends.real, frontends.our]) {
					await until(`${pod} is gone`, async () => (await instances(frontend)).length === 1, frontend);
					expect((await ask(frontend, false)).status).toBe(200);
				}
				ready(pod, true);
				for (const frontend of [frontends.real, frontends.our]) {
					await until(`${pod} is back`, async () => (await instances(frontend)).join() === all.join(), frontend);
				}
			}
		});

		test("the API server away and back, with its past forgotten: all go on and follow again", async () => {
			await api.suspend();
			for (const frontend of [frontends.real, frontends.our]) {
				expect((await ask(frontend, false)).status).toBe(200);
				expect(await instances(frontend)).toHaveLength(2);
			}
			await api.resume();
			api.expire();
			ready("our-0", false);
			for (const frontend of [frontends.real, frontends.our]) {
				const seen = async () => (await instances(frontend)).length === 1;
				await until("the change is seen", seen, { ...frontend, timeoutMs: 45_000 });
			}
			ready("our-0", true);
			for (const frontend of [frontends.real, frontends.our]) {
				await until("the worker is back", async () => (await instances(frontend)).length === 2, frontend);
			}
		}, 120_000);

		test("SIGTERM takes a worker away though its pod stays ready", async () => {
			workers.our.kill("SIGTERM");
			expect((await workers.our.exited).code).toBe(0);
			for (const frontend of [frontends.real, frontends.our]) {
				await until("our worker left", async () => (await instances(frontend)).length === 1, frontend);
				expect((await ask(frontend, false)).status).toBe(200);
			}
			workers.real.kill("SIGTERM");
			await workers.real.exited;
			for (const frontend of [frontends.real, frontends.our]) {
				await until("no model is left", async () => !(await listsModel(frontend.url, MODEL)), frontend);
			}
		});
	});
}
