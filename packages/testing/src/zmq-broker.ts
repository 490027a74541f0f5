// SPDX-License-Identifier: Apache-2.0
// A ZeroMQ broker in this process: what publishers send to one side goes to subscribers on the other.
import { loadZmq } from "@dynamo-ts/runtime/internal";

export interface ZmqBroker {
	/** Publishers connect here. */
	readonly xsub: string;
	/** Subscribers connect here. */
	readonly xpub: string;
	stop(): Promise<void>;
}

/** Starts a broker on free ports of the loopback interface, or where an earlier one was. */
export async function startZmqBroker(at: Pick<ZmqBroker, "xsub" | "xpub"> | undefined = undefined): Promise<ZmqBroker> {
	const zmq = await loadZmq();
	const front = new zmq.XSubscriber({ linger: 0 });
	const back = new zmq.XPublisher({ linger: 0 });
	for (const [socket, endpoint] of [
		[front, at?.xsub],
		[back, at?.xpub],
	] as const) {
		// A closed socket frees its port a moment later.
		for (let tries = 0; ; tries++) {
			try {
				await socket.bind(endpoint ?? "tcp://127.0.0.1:*");
				break;
			} catch (error) {
				if (tries === 200) throw error;
				await new Promise((resolve) => setTimeout(resolve, 20));
			}
		}
	}
	const xsub = front.lastEndpoint ?? "";
	const xpub = back.lastEndpoint ?? "";
	const proxy = new zmq.Proxy(front, back);
	const ended = proxy.run().catch(() => {});
	return {
		xsub,
		xpub,
		async stop() {
			if (!front.closed) proxy.terminate();
			await ended;
		},
	};
}
