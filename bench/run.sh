#!/usr/bin/env bash
# Measures every promise of speed beside its yardstick and prints one table
# with the ratios; a whole run also leaves bench/results/latest.{json,md}. See
# bench/README.md.
#
#   bench/run.sh [--quick] [--only SECTION[,SECTION...]] [--reads N]
#
#   --quick   a short run: proves that everything works, figures only indicative
#   --only    some of: one-thread two-processes pace scale pinned lifecycle torn beam regions python
#   --reads   checked reads of the torn-value check (default 1,000,000,000)
#
# Fails when a section could not be measured or a torn value was seen, never
# because a figure misses its target: the table says that.
set -euo pipefail

sections=(one-thread two-processes pace scale pinned lifecycle torn beam regions python)
quick=""
reads=()
only=""
while (($#)); do
  case "$1" in
    --quick) quick=1 ;;
    --only | --reads)
      [ $# -ge 2 ] || { echo "$1 needs a value" >&2; exit 2; }
      if [ "$1" = --only ]; then only="$2"; else reads=(--reads "$2"); fi
      shift
      ;;
    -h | --help) sed -n '2,13s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "unknown option $1 (see $0 --help)" >&2; exit 2 ;;
  esac
  shift
done
if [ -n "$only" ]; then
  IFS=, read -r -a chosen <<<"$only"
  for section in "${chosen[@]}"; do
    [[ " ${sections[*]} " == *" $section "* ]] || { echo "no section $section; there are: ${sections[*]}" >&2; exit 2; }
  done
  sections=("${chosen[@]}")
fi

cd "$(dirname "$0")/.."
command -v cargo >/dev/null || { echo "cargo is missing: run make setup" >&2; exit 1; }

# Segments and the parts of the report live here; nothing is left behind.
SNAKEPIT_BENCH_DIR="$(mktemp -d "${SNAKEPIT_BENCH_PARENT:-/dev/shm}/snakepit-bench.XXXXXX")"
SNAKEPIT_BENCH_PARTS="$(mktemp -d)"
export SNAKEPIT_BENCH_DIR SNAKEPIT_BENCH_PARTS
trap 'rm -rf "$SNAKEPIT_BENCH_DIR" "$SNAKEPIT_BENCH_PARTS"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
[ -z "$quick" ] || export SNAKEPIT_BENCH_QUICK=1
flags=(${quick:+--quick})

cargo bench --package snakepit-shm-bench --no-run
cargo build --release --package snakepit-shm-bench
target="$(cargo metadata --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')"
export SNAKEPIT_BENCH_BIN="$target/release/snakepit-shm-bench"
bench="$SNAKEPIT_BENCH_BIN"
python="${SNAKEPIT_BENCH_PYTHON:-.venv/bin/python}"

# Criterion, without its lines about what it is about to do.
criterion() {
  cargo bench --package snakepit-shm-bench --bench "$1" -- --quiet --noplot 2>&1 |
    grep --line-buffered -v '^Benchmarking '
}

run_section() {
  case "$1" in
    one-thread) criterion one_thread ;;
    two-processes) criterion two_processes ;;
    pace | scale | pinned | lifecycle) "$bench" "$1" "${flags[@]}" ;;
    torn) "$bench" torn "${flags[@]}" "${reads[@]}" ;;
    beam) mix run --no-start bench/beam/api_bench.exs ;;
    regions) mix run --no-start bench/beam/regions_bench.exs ;;
    python) "$python" bench/python/api_bench.py ;;
  esac
}

# A function, so that all of it was read before a run of minutes begins.
main() {
  failed=()
  for section in "${sections[@]}"; do
    printf '\n== %s\n' "$section"
    run_section "$section" || failed+=("$section")
  done

  printf '\n== all figures\n'
  report=(report --parts "$SNAKEPIT_BENCH_PARTS" --targets bench/targets.json
    --date "$(date -u +%Y-%m-%dT%H:%M:%SZ)" --commit "$(git describe --always --dirty 2>/dev/null || echo unknown)")
  for section in "${failed[@]}"; do report+=(--failed "$section"); done
  # A run of some sections is for the eye; neither it nor a short one replaces the results of a whole one, which are
  # kept and which docs/performance.md is made from.
  local results="bench/results"
  [ -z "$quick" ] || results="target/bench-quick"
  if [ -z "$only" ]; then
    mkdir -p "$results"
    report+=(--results "$results")
  fi
  "$bench" "${report[@]}" "${flags[@]}"
  [ -n "$only$quick" ] || "$python" bench/performance.py
  # For whoever compares the figures (bench/check.py).
  if [ -n "${SNAKEPIT_BENCH_KEEP_PARTS:-}" ]; then
    cp "$SNAKEPIT_BENCH_PARTS"/*.json "$SNAKEPIT_BENCH_KEEP_PARTS"/
  fi

  if ((${#failed[@]})); then
    echo "failed: ${failed[*]}" >&2
    exit 1
  fi
}

main
