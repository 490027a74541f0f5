#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Disaggregated serving with routing by what workers have cached: two workers for prompts, two for answers.
#   deploy/launch/disagg_router.sh [MODEL [WORKER FLAG...]]   settings: deploy/launch/common.sh
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

frontend --router-mode kv
worker "Decode Worker 1" "$DYN_SYSTEM_PORT1" --is-decode-worker
worker "Decode Worker 2" "$DYN_SYSTEM_PORT2" --is-decode-worker
worker "Prefill Worker 1" "$DYN_SYSTEM_PORT3" --is-prefill-worker
worker "Prefill Worker 2" "$DYN_SYSTEM_PORT4" --is-prefill-worker
wait_and_serve "Disaggregated deployment with KV routing ready!"
