// SPDX-License-Identifier: Apache-2.0
// Variables of discovery, the request plane, NATS, TLS between processes and events.
import { type EnvVariable, everywhere, OF_A_FLAG, worker } from "./env-variable.js";

type Variables = Record<string, EnvVariable | typeof OF_A_FLAG>;

const ETCD_PINGS = "pings on a silent connection, and how long their answers may take";
const ETCD_LOGIN = "login";
const ETCD_TLS = "TLS: files, or the PEM text itself";
const POD =
	"who the process is in Kubernetes, by the downward API; the files `pod_name`, `pod_uid`, `pod_namespace` in `/etc/podinfo` win";
const KUBE_MODE = "`pod`: ready as EndpointSlices say; `container`: each container for itself, ready as its Pod says";
const KUBE_SERVICE = "the Kubernetes API, as it tells each pod";

export const DISCOVERY_VARIABLES = {
	DYN_DISCOVERY_BACKEND: OF_A_FLAG,
	ETCD_ENDPOINTS: everywhere(
		"http://localhost:2379",
		"etcd's addresses, separated by commas; the next one is used when one fails",
	),
	ETCD_LEASE_TTL: everywhere("30 s", "a process that dies is gone from etcd after so long"),
	ETCD_STARTUP_CONNECT_TIMEOUT_SECONDS: everywhere(
		"120 s",
		"how long a process waits at start for an etcd that does not answer",
	),
	ETCD_KEEPALIVE_INTERVAL_SECONDS: everywhere("10 s", ETCD_PINGS),
	ETCD_KEEPALIVE_TIMEOUT_SECONDS: everywhere("5 s", ETCD_PINGS),
	ETCD_AUTH_USERNAME: everywhere("", ETCD_LOGIN),
	ETCD_AUTH_PASSWORD: everywhere("", ETCD_LOGIN),
	ETCD_AUTH_CA: everywhere("", ETCD_TLS),
	ETCD_AUTH_CLIENT_CERT: everywhere("", ETCD_TLS),
	ETCD_AUTH_CLIENT_KEY: everywhere("", ETCD_TLS),
	POD_NAME: everywhere("none", POD),
	POD_UID: everywhere("none", POD),
	POD_NAMESPACE: everywhere("default", POD),
	DYN_KUBE_DISCOVERY_MODE: everywhere("pod", KUBE_MODE),
	CONTAINER_NAME: everywhere("none", KUBE_MODE),
	KUBECONFIG: everywhere(
		"`~/.kube/config`",
		"the way to the Kubernetes API; where there is no such file, the service account of the pod",
	),
	KUBERNETES_SERVICE_HOST: everywhere("none", KUBE_SERVICE),
	KUBERNETES_SERVICE_PORT: everywhere("none", KUBE_SERVICE),
	DYN_FILE_KV: everywhere("`$TMPDIR/dynamo_store_kv`", "folder of the `file` discovery backend"),
} as const satisfies Variables;

const TCP_RPC = "where a worker takes requests, and the host that it advertises";
const TCP_RESPONSES = "where a frontend takes response streams";
const TCP_TIMEOUTS =
	"connecting; until a worker acknowledges a request. A worker that has acknowledged must call home within three times the first, and within half a second once it has closed the connection";
const TCP_POOL = "most request connections per worker; how long unused ones stay open";
const TCP_WORK =
	"requests that a process handles at once, whatever their endpoint; requests that wait for that, beyond which they are answered with 529";

export const REQUEST_PLANE_VARIABLES = {
	DYN_REQUEST_PLANE: OF_A_FLAG,
	DYN_RESPONSE_PLANE: OF_A_FLAG,
	DYN_TCP_RPC_HOST: everywhere("127.0.0.1", TCP_RPC),
	DYN_TCP_RPC_PORT: everywhere("any", TCP_RPC),
	DYN_TCP_RESPONSE_STREAM_HOST: everywhere("127.0.0.1", TCP_RESPONSES),
	DYN_TCP_RESPONSE_STREAM_PORT: everywhere("any", TCP_RESPONSES),
	DYN_TCP_CONNECT_TIMEOUT: everywhere("5 s", TCP_TIMEOUTS),
	DYN_TCP_REQUEST_TIMEOUT: everywhere("5 s", TCP_TIMEOUTS),
	DYN_REQUEST_FIRST_RESPONSE_TIMEOUT_SECS: everywhere("300 s", "until the first token, 0 for no limit"),
	DYN_REQUEST_IDLE_TIMEOUT_SECS: everywhere("120 s", "between two tokens, 0 for no limit"),
	DYN_TCP_POOL_SIZE: everywhere("100", TCP_POOL),
	DYN_TCP_HOST_IDLE_TTL_SECS: everywhere("300 s", TCP_POOL),
	DYN_TCP_WORKER_POOL_SIZE: everywhere("10000", TCP_WORK),
	DYN_TCP_WORK_QUEUE_SIZE: everywhere("40000", TCP_WORK),
	DYN_TCP_LISTEN_BACKLOG: everywhere(
		"65535",
		"connections that may wait to be accepted; the kernel's `net.core.somaxconn` limits it too",
	),
	DYN_TCP_MAX_MESSAGE_SIZE: everywhere("33554432", "largest request in bytes"),
	DYN_TCP_RESPONSE_BUFFER_SIZE: everywhere(
		"16777216",
		"bytes that may pile up for a frontend that does not read, before its stream is cut",
	),
	DYN_REQUEST_PLANE_CODEC: everywhere("msgpack", "what a worker asks for: `msgpack` or `json`"),
	DYN_RUNTIME_INHIBITED_DURATION_SECS: everywhere(
		"5 s",
		"how long an instance is left aside that could not be reached or lost a stream, or that had five errors of its own in a row while there was another",
	),
	DYN_ENGINE_REQUEST_LIMIT: worker("none", "requests that a worker's engine is given at once"),
	DYN_DYNAMO_REQUEST_QUEUE_LIMIT: worker(
		"none",
		"requests that wait in the worker beyond that; more are answered with 529",
	),
} as const satisfies Variables;

const NATS_LOGIN = "login; counts before the next three";
const NATS_OTHER_LOGINS = "other logins: a token, an nkey's seed, a file with JWT and seed";

export const NATS_VARIABLES = {
	NATS_SERVER: everywhere(
		"nats://localhost:4222",
		"one or several addresses, separated by commas; `tls://` asks for TLS. User and password, or a token, may stand in the address",
	),
	NATS_AUTH_USERNAME: everywhere("", NATS_LOGIN),
	NATS_AUTH_PASSWORD: everywhere("", NATS_LOGIN),
	NATS_AUTH_TOKEN: everywhere("", NATS_OTHER_LOGINS),
	NATS_AUTH_NKEY: everywhere("", NATS_OTHER_LOGINS),
	NATS_AUTH_CREDENTIALS_FILE: everywhere("", NATS_OTHER_LOGINS),
	NATS_STARTUP_CONNECT_TIMEOUT_SECONDS: everywhere(
		"30 s",
		"how long a process tries to reach NATS before its start fails",
	),
	DYN_NATS_REQUEST_TIMEOUT_SECS: everywhere("10 s", "until a worker acknowledges a request, a wait for NATS included"),
	NATS_TLS_CA_CERT_PATH: OF_A_FLAG,
	NATS_TLS_INSECURE: OF_A_FLAG,
	NATS_TLS_CLIENT_CERT_PATH: OF_A_FLAG,
	NATS_TLS_CLIENT_KEY_PATH: OF_A_FLAG,
} as const satisfies Variables;

export const TLS_VARIABLES = {
	DYN_TCP_TLS_CERT_PATH: OF_A_FLAG,
	DYN_TCP_TLS_KEY_PATH: OF_A_FLAG,
	DYN_TCP_TLS_CA_CERT_PATH: OF_A_FLAG,
	DYN_TCP_TLS_CLIENT_CERT_PATH: OF_A_FLAG,
	DYN_TCP_TLS_CLIENT_KEY_PATH: OF_A_FLAG,
	DYN_TCP_TLS_CLIENT_CA_CERT_PATH: OF_A_FLAG,
	DYN_TCP_TLS_SERVER_NAME: everywhere("the host that is dialled", "name that the peers' certificates must bear"),
	DYN_TCP_TLS_INSECURE: everywhere("false", "TLS without looking at certificates; for tries only"),
	DYN_TCP_TLS_HANDSHAKE_TIMEOUT_SECS: everywhere("3 s", "longest handshake"),
} as const satisfies Variables;

export const EVENT_VARIABLES = {
	DYN_EVENT_PLANE: OF_A_FLAG,
	DYN_EVENT_PLANE_HOST: everywhere(
		"the first address that is not the loopback one",
		"IP address, host name or interface under which others reach this process' event sockets; only that one is listened on",
	),
	DYN_EVENT_PLANE_BIND_HOST: everywhere("the same", "another address to listen on, 0.0.0.0 for all"),
	DYN_ZMQ_BROKER_URL: everywhere(
		"none",
		"`xsub=tcp://host:port[;...] , xpub=tcp://host:port[;...]`: events go through these brokers",
	),
	DYN_ZMQ_BROKER_ENABLED: everywhere(
		"false",
		"events go through the brokers that discovery shows (component `zmq_broker` of the namespace)",
	),
} as const satisfies Variables;
