// SPDX-License-Identifier: Apache-2.0
// Certificates between processes: the TCP listeners and connections, and NATS.
import { ENV, type EnvName } from "@dynamo-ts/protocols/internal";
import type { FlagSpec } from "./flag-spec.js";

const GROUP = "TLS between processes";

function path(flag: string, env: EnvName, help: string): FlagSpec {
	return { flag, env, type: "string", metavar: "FILE", group: GROUP, help };
}

/** Every process listens and dials, so each gets all of them. */
export const TRANSPORT_TLS_FLAGS: readonly FlagSpec[] = [
	path("tcp-tls-cert-path", ENV.DYN_TCP_TLS_CERT_PATH, "Certificate of the TCP listeners, PEM."),
	path("tcp-tls-key-path", ENV.DYN_TCP_TLS_KEY_PATH, "Its private key, PEM."),
	path(
		"tcp-tls-ca-cert-path",
		ENV.DYN_TCP_TLS_CA_CERT_PATH,
		"Authority that signed the peers' certificates, PEM; turns TLS on for what this process dials.",
	),
	path("tcp-tls-client-cert-path", ENV.DYN_TCP_TLS_CLIENT_CERT_PATH, "Certificate that is shown when dialling, PEM."),
	path("tcp-tls-client-key-path", ENV.DYN_TCP_TLS_CLIENT_KEY_PATH, "Its private key, PEM."),
	path(
		"tcp-tls-client-ca-cert-path",
		ENV.DYN_TCP_TLS_CLIENT_CA_CERT_PATH,
		"Authority of the certificates that clients must show to the TCP listeners, PEM.",
	),
	path("nats-tls-ca-cert-path", ENV.NATS_TLS_CA_CERT_PATH, "Authority that signed the NATS server's certificate, PEM."),
	{
		flag: "nats-tls-insecure",
		env: ENV.NATS_TLS_INSECURE,
		type: "boolean",
		group: GROUP,
		help: "TLS to NATS without looking at its certificate; for tries only.",
	},
	path(
		"nats-tls-client-cert-path",
		ENV.NATS_TLS_CLIENT_CERT_PATH,
		"Certificate that is shown to the NATS server, PEM.",
	),
	path("nats-tls-client-key-path", ENV.NATS_TLS_CLIENT_KEY_PATH, "Its private key, PEM."),
];
