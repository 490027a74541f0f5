#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Aggregated serving with logs as JSON lines and traces.
#   deploy/launch/agg_obs.sh [MODEL [WORKER FLAG...]]   settings: deploy/launch/common.sh and observability.env
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# shellcheck source-path=SCRIPTDIR source=observability.env
if [[ -f ~/observability.env ]]; then source ~/observability.env; else source "$ROOT/deploy/launch/observability.env"; fi

echo "Starting Dynamo Frontend with observability..."
export OTEL_SERVICE_NAME=dynamo-frontend
frontend

echo "Starting Worker with model: $MODEL"
export OTEL_SERVICE_NAME=dynamo-worker-aggregated
worker "Worker" "$DYN_SYSTEM_PORT1" --otlp-traces-endpoint="$OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"

wait_and_serve "Aggregated deployment ready with observability enabled!"
