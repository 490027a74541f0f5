// SPDX-License-Identifier: Apache-2.0
import { DynamoError, type EndpointId } from "@dynamo-ts/protocols/internal";

/**
 * Reads `dyn://namespace.component.endpoint`; the scheme may be left out.
 * @throws DynamoError `InvalidArgument` naming the text and the form.
 */
export function parseEndpointAddress(text: string): EndpointId {
	const parts = text.replace(/^dyn:\/\//, "").split(/[./]/);
	const [namespace, component, name] = parts;
	if (parts.length !== 3 || parts.some((part) => !/^[A-Za-z0-9_-]+$/.test(part))) {
		const message = `endpoint "${text}" is not valid: dyn://NAMESPACE.COMPONENT.ENDPOINT is expected, each of letters, digits, - and _`;
		throw new DynamoError("InvalidArgument", message, { publicMessage: message });
	}
	return { namespace: namespace!, component: component!, name: name! };
}

/** `dyn://namespace.component.endpoint`. */
export function formatEndpointAddress(id: EndpointId): string {
	return `dyn://${id.namespace}.${id.component}.${id.name}`;
}
