#!/usr/bin/env bash
# Runs ruff and the tests. Arguments go to pytest:  bash scripts/test.sh tests/test_loss.py -k kl
set -euo pipefail
source "$(dirname "$0")/setup.sh"
setup requirements.txt requirements-dev.txt
"$python" -m ruff check .
exec "$python" -m pytest "$@"
