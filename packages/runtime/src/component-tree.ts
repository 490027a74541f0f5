// SPDX-License-Identifier: Apache-2.0
import { DynamoError, type EndpointId, LABELS } from "@dynamo-ts/protocols/internal";
import type { Component, Endpoint, EndpointClient, Namespace, ServedEndpoint, ServeOptions } from "./component.js";
import type { MetricsRegistry } from "./observability/metrics.js";
import type { EndpointHandler } from "./request-plane/request-plane.js";

/** What endpoints need from the runtime that they belong to. */
export interface EndpointHost {
	serve(endpoint: Endpoint, handler: EndpointHandler, options: ServeOptions): Promise<ServedEndpoint>;
	client(endpoint: Endpoint): Promise<EndpointClient>;
}

/** Names are parts of keys and addresses, where `/` separates; other odd characters are more likely a mistake. */
function checkName(kind: string, name: string): void {
	if (!/^[^\s/\p{Cc}]+$/u.test(name)) {
		throw new DynamoError(
			"InvalidArgument",
			`${kind} name ${JSON.stringify(name)} is not valid: it must not be empty or contain "/" or spaces`,
		);
	}
}

/** Makes each child once: the same name gives the same object, and so the same metrics. */
class Children<T> {
	readonly #byName = new Map<string, T>();

	get(kind: string, name: string, make: () => T): T {
		let child = this.#byName.get(name);
		if (child === undefined) {
			checkName(kind, name);
			child = make();
			this.#byName.set(name, child);
		}
		return child;
	}
}

/** The namespaces of a runtime. */
export class NamespaceTree {
	readonly #children = new Children<Namespace>();
	readonly #host: EndpointHost;
	readonly #metrics: MetricsRegistry;

	constructor(host: EndpointHost, metrics: MetricsRegistry) {
		this.#host = host;
		this.#metrics = metrics;
	}

	/** @throws DynamoError `InvalidArgument` for a bad name. */
	namespace(name: string): Namespace {
		return this.#children.get("namespace", name, () => makeNamespace(name, this.#metrics, this.#host));
	}
}

function makeNamespace(name: string, parent: MetricsRegistry, host: EndpointHost): Namespace {
	const components = new Children<Component>();
	const metrics = parent.level({ labels: { [LABELS.namespace]: name } });
	const namespace: Namespace = {
		name,
		metrics,
		component: (child) => components.get("component", child, () => makeComponent(namespace, child, host)),
	};
	return namespace;
}

function makeComponent(namespace: Namespace, name: string, host: EndpointHost): Component {
	const endpoints = new Children<Endpoint>();
	const metrics = namespace.metrics.level({ labels: { [LABELS.component]: name } });
	const component: Component = {
		namespace,
		name,
		metrics,
		endpoint: (child) => endpoints.get("endpoint", child, () => makeEndpoint(component, child, host)),
	};
	return component;
}

function makeEndpoint(component: Component, name: string, host: EndpointHost): Endpoint {
	const id: EndpointId = { namespace: component.namespace.name, component: component.name, name };
	const endpoint: Endpoint = {
		component,
		name,
		id,
		metrics: component.metrics.level({ labels: { [LABELS.endpoint]: name } }),
		serve: (handler, options = {}) => host.serve(endpoint, handler, options),
		client: () => host.client(endpoint),
	};
	return endpoint;
}
