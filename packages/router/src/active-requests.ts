// SPDX-License-Identifier: Apache-2.0

/**
 * Which requests are under way where. Load is a set of request ids, so that it cannot drift: an id leaves only with
 * its request, and ending twice does nothing.
 */
export class ActiveRequests {
	private readonly byInstance = new Map<bigint, Set<string>>();

	/** Requests under way at an instance. */
	count(instanceId: bigint): number {
		return this.byInstance.get(instanceId)?.size ?? 0;
	}

	/** Instances with requests under way. */
	get size(): number {
		return this.byInstance.size;
	}

	add(instanceId: bigint, requestId: string): void {
		const ids = this.byInstance.get(instanceId);
		if (ids === undefined) this.byInstance.set(instanceId, new Set([requestId]));
		else ids.add(requestId);
	}

	remove(instanceId: bigint, requestId: string): void {
		const ids = this.byInstance.get(instanceId);
		if (ids?.delete(requestId) && ids.size === 0) this.byInstance.delete(instanceId);
	}
}
