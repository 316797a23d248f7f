#!/usr/bin/env bash
# Everything on a machine with a GPU and without network; needs Python 3.12, torch 2.11 and g++.
#
#   run.sh start PIECES_DIR [WORK] [-- RUNNER ARGUMENTS]   take what is there, begin in the background
#   run.sh add PIECES_DIR [WORK]                           take more pieces, in any order
#   run.sh status [WORK]                                   tables; what runs, what is missing
#   run.sh results DIR [WORK]                              copy what was found: 8 files, 16 MiB each
#
# PIECES_DIR also has manifest.json. WORK is ~/grpo-gpu where it is not named. Every call returns
# within seconds; after a crash `start` goes on. PYTHON names another interpreter than python3.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec "${PYTHON:-python3}" "$here/receive.pyz" "$@"
