#!/usr/bin/env bash
# Builds the Rust API documentation; a broken link or a missing page is an error.
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

RUSTDOCFLAGS="-D warnings" cargo doc --quiet --workspace --no-deps
say "target/doc/snakepit_shm/index.html"
note "Elixir: h Snakepit.SharedMemory in iex -S mix;  Python: .venv/bin/python -m pydoc snakepit_shm"
