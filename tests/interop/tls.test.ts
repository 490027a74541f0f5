// SPDX-License-Identifier: Apache-2.0
// Mutual TLS between processes, over TCP and over NATS: ours among themselves, and with the real ones where they are.
import {
	CertificateAuthority,
	findNatsServer,
	findOpenssl,
	findRealDynamo,
	type HttpChild,
	http,
	openStream,
	testModel,
	titled,
	until,
} from "@dynamo-ts/testing/internal";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Cluster, type Kind, MODEL_OF, type Plane } from "./cluster.js";

const hf = testModel("hf");
const openssl = findOpenssl();
const nats = findNatsServer();
const peer = findRealDynamo();
const modelPath = hf.path;
const KINDS: readonly Kind[] = peer.path ? ["our", "real"] : ["our"];

function missingFor(plane: Plane): string {
	if (hf.missing) return hf.missing;
	if (openssl.missing) return openssl.missing;
	return plane === "nats" ? nats.missing : "";
}

for (const plane of ["tcp", "nats"] as const) {
	const missing = missingFor(plane);
	describe.skipIf(missing)(titled(`mutual TLS over ${plane}`, missing), () => {
		let authority: CertificateAuthority;
		let stranger: CertificateAuthority;
		let cluster: Cluster;
		const frontends = {} as Record<Kind, HttpChild>;

		/** Every variable of one process, all certificates of one authority. */
		const variables = (own: CertificateAuthority): Record<string, string> => {
			const { cert, key } = own.sign();
			const env: Record<string, string> = {
				DYN_TCP_TLS_CERT_PATH: cert,
				DYN_TCP_TLS_KEY_PATH: key,
				DYN_TCP_TLS_CA_CERT_PATH: own.ca,
				DYN_TCP_TLS_CLIENT_CA_CERT_PATH: own.ca,
				DYN_TCP_TLS_CLIENT_CERT_PATH: cert,
				DYN_TCP_TLS_CLIENT_KEY_PATH: key,
				// Handshakes may be slow on a busy machine.
				DYN_TCP_TLS_HANDSHAKE_TIMEOUT_SECS: "20",
			};
			if (plane === "nats") {
				Object.assign(env, {
					NATS_TLS_CA_CERT_PATH: own.ca,
					NATS_TLS_CLIENT_CERT_PATH: cert,
					NATS_TLS_CLIENT_KEY_PATH: key,
				});
			}
			return env;
		};
		const ask = (front: Kind, model: string) =>
			http(`${frontends[front].url}/v1/chat/completions`, {
				body: { model, messages: [{ role: "user", content: "Hi" }], max_tokens: 5, ignore_eos: true },
			});

		beforeAll(async () => {
			authority = new CertificateAuthority();
			stranger = new CertificateAuthority("stranger");
			const server = authority.sign();
			cluster = await Cluster.start(peer.path, modelPath, plane, "file", {
				env: variables(authority),
				natsConfig: `tls { cert_file: "${server.cert}", key_file: "${server.key}", ca_file: "${authority.ca}", verify: true }`,
			});
			for (const kind of KINDS) await cluster.mocker(kind);
			for (const kind of KINDS) frontends[kind] = await cluster.frontend(kind, KINDS);
		}, 300_000);
		afterAll(async () => {
			await cluster?.stop();
			authority?.remove();
			stranger?.remove();
		});

		for (const front of KINDS) {
			for (const back of KINDS) {
				test(`${front} frontend, ${back} mocker: answers and streams`, async () => {
					const model = MODEL_OF[back];
					await until(`${model} is served`, async () => (await ask(front, model)).status === 200, {
						timeoutMs: 60_000,
					});
					const stream = await openStream(
						`${frontends[front].url}/v1/chat/completions`,
						{
							model,
							messages: [{ role: "user", content: "Hi" }],
							max_tokens: 50,
							ignore_eos: true,
							stream: true,
							stream_options: { include_usage: true },
						},
						{ kind: "chat", model, includeUsage: true, allowReplacementCharacter: true },
					);
					expect((await stream.finished()).usage?.completion_tokens).toBe(50);
				}, 90_000);
			}
		}

		test("a worker with a stranger's certificates gets no request, and its model a 503", async () => {
			if (plane === "nats") {
				// It does not even get in: the NATS server wants a certificate of the authority.
				const child = cluster.strangeMocker({ ...variables(stranger), NATS_STARTUP_CONNECT_TIMEOUT_SECONDS: "1" });
				expect((await child.exited).code).not.toBe(0);
				expect(child.output).toMatch(/no connection to NATS at .* within 1000 ms: .*certificate/);
				return;
			}
			const child = cluster.strangeMocker(variables(stranger));
			await until("its model is refused", async () => (await ask("our", "strange")).status === 503, {
				timeoutMs: 60_000,
				child,
			});
			expect(child.output).not.toContain("request received");
		}, 90_000);
	});
}
