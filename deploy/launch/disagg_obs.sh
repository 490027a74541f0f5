#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Disaggregated serving, two workers for answers and two for prompts, with logs as JSON lines and traces.
#   deploy/launch/disagg_obs.sh [MODEL [WORKER FLAG...]]   settings: deploy/launch/common.sh and observability.env
# The prefill workers publish their KV events on ports of their own too: DYN_VLLM_KV_EVENT_PORT1 and 2 (20082, 20083).
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# shellcheck source-path=SCRIPTDIR source=observability.env
if [[ -f ~/observability.env ]]; then source ~/observability.env; else source "$ROOT/deploy/launch/observability.env"; fi

kv_events() {
	echo "{\"publisher\":\"zmq\",\"topic\":\"kv-events\",\"endpoint\":\"tcp://*:$1\",\"enable_kv_cache_events\":true}"
}
traces=--otlp-traces-endpoint=$OTEL_EXPORTER_OTLP_TRACES_ENDPOINT

echo "Starting Dynamo Frontend with observability..."
export OTEL_SERVICE_NAME=dynamo-frontend
frontend

echo "Starting Decode Workers with observability..."
export OTEL_SERVICE_NAME=dynamo-worker-decode-1
worker "Decode Worker 1" "$DYN_SYSTEM_PORT1" --is-decode-worker --max-model-len 2048 "$traces"
export OTEL_SERVICE_NAME=dynamo-worker-decode-2
worker "Decode Worker 2" "$DYN_SYSTEM_PORT2" --is-decode-worker --max-model-len 2048 "$traces"

echo "Starting Prefill Workers with observability..."
export OTEL_SERVICE_NAME=dynamo-worker-prefill-1
worker "Prefill Worker 1" "$DYN_SYSTEM_PORT3" --is-prefill-worker --max-model-len 2048 "$traces" \
	--kv-events-config "$(kv_events "${DYN_VLLM_KV_EVENT_PORT1:-20082}")"
export OTEL_SERVICE_NAME=dynamo-worker-prefill-2
worker "Prefill Worker 2" "$DYN_SYSTEM_PORT4" --is-prefill-worker --max-model-len 2048 "$traces" \
	--kv-events-config "$(kv_events "${DYN_VLLM_KV_EVENT_PORT2:-20083}")"

wait_and_serve "Disaggregated deployment ready with observability enabled!"
