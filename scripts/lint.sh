#!/usr/bin/env bash
# Formatters, linters and type checks; every warning is an error. Runs all of them, then says which failed.
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

passed=0
failures=()
check() {
  local name="$1"
  shift
  if "$@"; then
    passed=$((passed + 1))
    note "ok: $name"
  else
    failures+=("$name")
    note "FAILED: $name"
  fi
}

# Programs by themselves, not members of the workspace; built with the workspace's versions.
peer_clippy() {
  local lock="test/$1/peer/Cargo.lock"
  [ "$lock" -nt Cargo.lock ] || cp Cargo.lock "$lock"
  cargo clippy --quiet --manifest-path "test/$1/peer/Cargo.toml" --target-dir "${CARGO_TARGET_DIR:-target}" -- -D warnings
}

# Where the package's own configuration is found.
in_package() { (cd native/python && "$@"); }

for component in fmt clippy; do
  cargo "$component" --version >/dev/null 2>&1 ||
    die "cargo $component is missing." "Get it with:  rustup component add rustfmt clippy"
done

check "cargo fmt" cargo fmt --all -- --check
check "cargo clippy" cargo clippy --quiet --workspace --all-targets -- -D warnings
for peer in interop chaos; do
  check "cargo fmt, $peer peer" cargo fmt --manifest-path "test/$peer/peer/Cargo.toml" -- --check
  check "cargo clippy, $peer peer" peer_clippy "$peer"
done
# Its clippy would fetch and build every peer: `make bench-peers` does that.
check "cargo fmt, peers" cargo fmt --manifest-path bench/peers/Cargo.toml -- --check
check "cargo doc" env RUSTDOCFLAGS="-D warnings" cargo doc --quiet --workspace --no-deps
check "mix format" mix format --check-formatted
check "mix compile" env MIX_ENV=test mix compile --warnings-as-errors
check "ruff check" ruff check --quiet native/python scripts examples test bench
check "ruff format" ruff format --quiet --check native/python scripts examples test bench
check "mypy" in_package mypy
check "stubtest" in_package python -m mypy.stubtest --mypy-config-file pyproject.toml snakepit_shm
check "unsafe policy" scripts/unsafe_policy.sh
check "bench scripts" python -m unittest discover --quiet --start-directory bench --pattern "test_*.py"
check "performance page" python bench/performance.py --check
check "named tests" python scripts/named_tests.py docs/faults.md docs/requirements.md
check "shell syntax" bash -n scripts/*.sh .ci/run

[ ${#failures[@]} -eq 0 ] || die "lint: ${#failures[@]} failed: ${failures[*]}"
echo "$passed passed"
