#!/usr/bin/env bash
# Runs the example application examples/workers, on the workers' Python of .venv.
#
#     scripts/example.sh              EXAMPLE_QUICK=1 for small sizes, EXAMPLE_OUT=folder for the plot
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

export SNAKEPIT_PYTHON="${SNAKEPIT_PYTHON:-$VENV/bin/python}"
# As the caller means it, before we change the directory.
if [ -n "${EXAMPLE_OUT:-}" ]; then EXAMPLE_OUT="$(realpath -m "$EXAMPLE_OUT")"; fi
cd examples/workers
# Not started by mix: the run gives the library its own namespace first.
exec mix run --no-start run.exs
