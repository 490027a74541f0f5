// SPDX-License-Identifier: Apache-2.0
// An endpoint with metrics of its own. Usage, in a checkout after `npm run setup`:
//
//   DYN_DISCOVERY_BACKEND=file DYN_SYSTEM_PORT=8081 npx tsx examples/metrics-worker.ts
//   curl -s http://127.0.0.1:8081/metrics | grep my_component
import { DistributedRuntime, installSignalHandlers } from "@dynamo-ts/runtime";

const runtime = await DistributedRuntime.create();
const endpoint = runtime.namespace("my_namespace").component("my_component").endpoint("my_endpoint");
const { metrics } = endpoint;
const requests = metrics.createCounter("echo_requests_total", "Requests echoed", { region: "us-west" });
const latency = metrics.createHistogram("echo_latency_seconds", "Time to echo a request", {}, [0.001, 0.01, 0.1, 1]);
const bySize = metrics.createCounterVec("echo_requests_by_size", "Requests by size", ["size"]);
const memory = metrics.createGauge("echo_heap_bytes", "Heap in use");
metrics.addUpdateCallback(() => memory.set(process.memoryUsage().heapUsed));

await endpoint.serve((request, response) => {
	const text = JSON.stringify(request.payload);
	requests.inc();
	bySize.withLabelValues(text.length < 100 ? "small" : "large").inc();
	response.send({ data: text });
	response.end();
	latency.observe((performance.now() - request.receivedAt) / 1000);
});
installSignalHandlers(runtime);
console.log(`serving my_component; metrics at ${runtime.systemServer?.url ?? "none: set DYN_SYSTEM_PORT"}/metrics`);
