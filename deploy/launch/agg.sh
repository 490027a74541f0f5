#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Aggregated serving: a frontend and one worker that does everything.
#   deploy/launch/agg.sh [MODEL [WORKER FLAG...]]   settings: deploy/launch/common.sh
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

frontend
worker "Worker" "$DYN_SYSTEM_PORT1"
wait_and_serve "Aggregated deployment ready!"
