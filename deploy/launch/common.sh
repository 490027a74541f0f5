# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# What the launch scripts share: starts processes, waits until they answer, and ends all of them together.
#
#   MODEL                   first argument of a script; any model that `dynamo worker` takes. What follows it goes to
#                           every worker.
#   DYN_HTTP_PORT           the frontend's port, 8000
#   DYN_SYSTEM_PORT1 ... 4  the workers' ports for health and metrics, 8081 ... 8084 (the first one: DYN_SYSTEM_PORT too)
#   DYN_DISCOVERY_BACKEND   `file` needs no etcd
#   DYN_LAUNCH_TIMEOUT      seconds until everything must be ready, 600
set -euo pipefail
# Each process in a group of its own: Ctrl-C in the terminal reaches this script alone, which ends the others in order.
set -m

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
MODEL=${1:-smollm2-135m}
# shellcheck disable=SC2034
WORKER_ARGS=("${@:2}")
export DYN_HTTP_PORT=${DYN_HTTP_PORT:-8000}
DYN_SYSTEM_PORT1=${DYN_SYSTEM_PORT1:-${DYN_SYSTEM_PORT:-8081}}
DYN_SYSTEM_PORT2=${DYN_SYSTEM_PORT2:-8082}
DYN_SYSTEM_PORT3=${DYN_SYSTEM_PORT3:-8083}
DYN_SYSTEM_PORT4=${DYN_SYSTEM_PORT4:-8084}
# The frontend has no system port; a worker gets its own.
unset DYN_SYSTEM_PORT

PIDS=()
NAMES=()
URLS=()
LABELS=()
STOPPING=

command -v curl >/dev/null || { echo "this script needs curl, to see when processes are ready" >&2; exit 1; }

# start LABEL URL COMMAND [ARGUMENT...]: runs `dynamo COMMAND` in the background; URL is its base address.
start() {
	local label=$1 url=$2
	shift 2
	"$ROOT/bin/dynamo" "$@" </dev/null &
	PIDS+=($!)
	NAMES+=("dynamo $1")
	LABELS+=("$label")
	URLS+=("$url")
}

# frontend [FLAG...]
# shellcheck disable=SC2120
frontend() {
	start "Frontend" "http://localhost:$DYN_HTTP_PORT" frontend "$@"
}

# worker LABEL SYSTEM_PORT [FLAG...]
worker() {
	local label=$1 port=$2
	shift 2
	DYN_SYSTEM_PORT=$port start "$label" "http://localhost:$port" worker --model "$MODEL" "$@" ${WORKER_ARGS[@]+"${WORKER_ARGS[@]}"}
}

# Ends every process and waits for it. Requests under way may finish; a second Ctrl-C cuts them.
stop_all() {
	local pid
	for pid in ${PIDS[@]+"${PIDS[@]}"}; do kill -TERM "$pid" 2>/dev/null || true; done
	for pid in ${PIDS[@]+"${PIDS[@]}"}; do
		# A signal breaks off `wait`, not the process.
		while kill -0 "$pid" 2>/dev/null; do wait "$pid" 2>/dev/null || true; done
	done
}

on_signal() {
	if [[ -n $STOPPING ]]; then
		local pid
		for pid in "${PIDS[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
		return
	fi
	STOPPING=1
	echo "Cleaning up..." >&2
	stop_all
	exit "$1"
}
trap 'on_signal 130' INT
trap 'on_signal 143' TERM
trap 'on_signal 129' HUP
trap 'code=$?; [[ -n $STOPPING ]] || { STOPPING=1; stop_all; }; exit $code' EXIT

# fail_if_ended: says which process is gone.
fail_if_ended() {
	local i code
	for i in "${!PIDS[@]}"; do
		kill -0 "${PIDS[$i]}" 2>/dev/null && continue
		code=0
		wait "${PIDS[$i]}" || code=$?
		echo "${LABELS[$i]} (${NAMES[$i]}) ended with exit code $code; the lines above say why" >&2
		exit 1
	done
}

# until_ready WHAT COMMAND...: polls until COMMAND succeeds.
until_ready() {
	local what=$1
	shift
	until "$@" >/dev/null 2>&1; do
		fail_if_ended
		if ((SECONDS > ${DYN_LAUNCH_TIMEOUT:-600})); then
			echo "$what is not ready after ${DYN_LAUNCH_TIMEOUT:-600} seconds (DYN_LAUNCH_TIMEOUT)" >&2
			exit 1
		fi
		sleep 0.2
	done
}

answers() {
	curl --silent --fail --max-time 5 "$1"
}

# Name of the frontend's first model; fails while there is none.
model_name() {
	answers "$1/v1/models" | grep -o '"id":"[^"]*"' | head -n 1 | cut -d '"' -f 4 | grep .
}

# wait_and_serve WHAT: waits until all processes answer and the frontend has a model, says so, and stays until the end.
wait_and_serve() {
	local i
	echo "Waiting for services to initialize..."
	for i in "${!URLS[@]}"; do until_ready "${LABELS[$i]}" answers "${URLS[$i]}/health"; done
	until_ready "The model" model_name "${URLS[0]}"
	echo
	echo "$1"
	echo "Model: $(model_name "${URLS[0]}")"
	echo
	echo "API Endpoint:"
	echo "  ${URLS[0]}/v1/chat/completions"
	echo
	echo "Dashboard:"
	echo "  ${URLS[0]}/dashboard"
	echo
	echo "Metrics Endpoints:"
	for i in "${!URLS[@]}"; do echo "  ${LABELS[$i]}: ${URLS[$i]}/metrics"; done
	echo
	if [[ ${OTEL_EXPORT_ENABLED:-} == true ]]; then
		echo "Observability UIs:"
		echo "  Grafana: http://localhost:3000 (username: dynamo, password: dynamo)"
		echo "  Prometheus: http://localhost:9090"
		echo "  Tempo: http://localhost:3200"
		echo
	fi
	# One that ends takes the others with it.
	wait -n "${PIDS[@]}" || true
	fail_if_ended
}
