#!/usr/bin/env bash
# Formats everything with the stock formatters.
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

cargo fmt --all
cargo fmt --manifest-path test/interop/peer/Cargo.toml
mix format
ruff format native/python scripts examples test bench
say "formatted"
