#!/usr/bin/env bash
# Sets everything up and runs the tests; arguments go to pytest, e.g. `bash scripts/test.sh -m slow tests/data`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

. scripts/setup.sh
set_up requirements-dev.txt
exec python -m pytest "$@"
