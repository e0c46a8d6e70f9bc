#!/usr/bin/env bash
# Removes everything that was built: nothing that git tracks.
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

rm -rf target _build deps doc priv/native demo-out examples/workers/_build .venv
find native/python -name '_native*.so' -delete
find . -type d \( -name __pycache__ -o -name .ruff_cache -o -name .mypy_cache -o -name .pytest_cache -o -name .hypothesis \) \
  -prune -exec rm -rf {} +
say "clean"
