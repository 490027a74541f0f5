// SPDX-License-Identifier: Apache-2.0
// Who this process is within the cluster: its pod, its container, and the custom resource that is its own.
import { readFile } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import { DynamoError, ENV } from "@dynamo-ts/protocols/internal";
import type { EnvReader } from "../../config.js";

/** What the environment says about Kubernetes; looked at only by the kubernetes backend. */
export interface KubernetesConfig {
	/** `pod`: one worker per pod, ready as EndpointSlices say; `container`: one per container, ready as its Pod says. */
	readonly mode: "pod" | "container";
	readonly podName?: string;
	readonly podUid?: string;
	readonly podNamespace?: string;
	readonly containerName?: string;
	/** Files that win over the variables: `pod_name`, `pod_uid`, `pod_namespace`. */
	readonly podInfoFolder: string;
	/** The kubeconfig file; taken before the in-cluster settings if it is there. */
	readonly kubeconfig: string;
	/** In-cluster settings: address of the API server, and the folder with `ca.crt` and `token`. */
	readonly serviceHost?: string;
	readonly servicePort?: string;
	readonly serviceAccountFolder: string;
}

/** @throws DynamoError `InvalidArgument`. */
export function readKubernetesConfig(read: EnvReader): KubernetesConfig {
	const text = (name: string): string | undefined => read.text(name, "").trim() || undefined;
	const optional = {
		podName: text(ENV.POD_NAME),
		podUid: text(ENV.POD_UID),
		podNamespace: text(ENV.POD_NAMESPACE),
		containerName: text(ENV.CONTAINER_NAME),
		serviceHost: text(ENV.KUBERNETES_SERVICE_HOST),
		servicePort: text(ENV.KUBERNETES_SERVICE_PORT),
	};
	return {
		mode: read.choice(ENV.DYN_KUBE_DISCOVERY_MODE, ["pod", "container"], "pod"),
		podInfoFolder: "/etc/podinfo",
		kubeconfig: read.text(ENV.KUBECONFIG, join(homedir(), ".kube", "config")),
		serviceAccountFolder: "/var/run/secrets/kubernetes.io/serviceaccount",
		...(Object.fromEntries(Object.entries(optional).filter(([, value]) => value !== undefined)) as {
			[K in keyof typeof optional]?: string;
		}),
	};
}

/** The process as the cluster knows it. */
export interface KubeIdentity {
	readonly mode: "pod" | "container";
	readonly podName: string;
	readonly podUid: string;
	readonly namespace: string;
	/** Name of this process' custom resource. */
	readonly resourceName: string;
}

/** Name of the custom resource of a container: the pod's own name for the container `main`. */
export function containerResourceName(podName: string, container: string): string {
	return container === "main" ? podName : `${podName}-${container}`;
}

/**
 * Reads the files of the downward API and the configuration.
 * @param onDefaultNamespace told when no namespace is given and `default` is taken.
 * @throws DynamoError `InvalidArgument` that names what is missing.
 */
export async function kubeIdentity(config: KubernetesConfig, onDefaultNamespace: () => void): Promise<KubeIdentity> {
	const read = async (file: string, otherwise: string | undefined): Promise<string | undefined> => {
		const text = await readFile(join(config.podInfoFolder, file), "utf8").catch(() => "");
		return text.trim() || otherwise;
	};
	const podName = required(ENV.POD_NAME, await read("pod_name", config.podName));
	const podUid = required(ENV.POD_UID, await read("pod_uid", config.podUid));
	let namespace = await read("pod_namespace", config.podNamespace);
	if (namespace === undefined) {
		onDefaultNamespace();
		namespace = "default";
	}
	const { mode } = config;
	const resourceName =
		mode === "pod" ? podName : containerResourceName(podName, required(ENV.CONTAINER_NAME, config.containerName));
	return { mode, podName, podUid, namespace, resourceName };
}

function required(variable: string, value: string | undefined): string {
	if (value !== undefined) return value;
	const text = `${variable} is not available from file or environment: kubernetes discovery needs it (set it by the downward API, or choose another ${ENV.DYN_DISCOVERY_BACKEND})`;
	throw new DynamoError("InvalidArgument", text, { publicMessage: text, param: variable });
}
