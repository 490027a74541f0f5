#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Disaggregated serving: one worker for prompts, one for answers.
#   deploy/launch/disagg.sh [MODEL [WORKER FLAG...]]   settings: deploy/launch/common.sh
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

frontend
worker "Decode Worker" "$DYN_SYSTEM_PORT1" --is-decode-worker
worker "Prefill Worker" "$DYN_SYSTEM_PORT2" --is-prefill-worker
wait_and_serve "Disaggregated deployment ready!"
