#!/usr/bin/env bash
# Everything worth knowing on a GPU, in at most nine minutes: bash benchmarks/gpu.sh --json FILE [--quick]
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHONPATH="src:.${PYTHONPATH:+:$PYTHONPATH}" timeout 540 "${PYTHON:-python}" -m benchmarks.gpu.run "$@"
