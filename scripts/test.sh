#!/usr/bin/env bash
# Runs suites and says what each counted. A suite fails when a test fails, when one was skipped, when none ran, or when
# it takes longer than SUITE_TIMEOUT seconds or until RUN_UNTIL (seconds since 1970); afterwards /dev/shm and the process
# list are compared with before.
#
#   scripts/test.sh                 everything
#   scripts/test.sh rust python     only these; names are the functions suite_* below
#
# Each suite's whole output stays in target/test-logs/.
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

# `trixie` and `free-threaded` by name only: they need root, and an interpreter that nobody has by default.
ALL=(lint rust counts loom elixir python torch wheel interop readme demo example chaos)
LOGS="$ROOT/target/test-logs"
SUITE_TIMEOUT="${SUITE_TIMEOUT:-900}"
RUN_UNTIL="${RUN_UNTIL:-}"

# --- the suites -----------------------------------------------------------------------------------------------------

suite_lint() { exec scripts/lint.sh; }

# The two bindings have no Rust tests of their own: mix and pytest test them from the side their users see.
suite_rust() {
  exec cargo test --workspace --exclude snakepit-shm-nif --exclude snakepit-shm-python --no-fail-fast
}

suite_counts() { exec python bench/counts.py; }

# Its own target directory: --cfg loom changes every dependency's fingerprint.
suite_loom() {
  RUSTFLAGS="--cfg loom" exec cargo test -p snakepit-shm --release --lib --target-dir target/loom loom
}

suite_elixir() { exec mix test --exclude interop; }
suite_interop() { exec mix test --only interop; }
suite_python() { cd native/python && exec python -m pytest; }
suite_torch() { exec scripts/torch_test.sh; }
suite_wheel() { exec python test/wheel/run.py; }
suite_readme() { exec python test/readme/run.py README.md; }
suite_demo() { exec scripts/demo_test.sh; }
suite_example() { exec scripts/example_test.sh; }
suite_chaos() { exec scripts/chaos.sh --seconds 20 --seed 1; }
suite_free-threaded() { exec scripts/free_threaded.sh; }
suite_trixie() { exec scripts/trixie.sh; }

# --- running one, counting it ---------------------------------------------------------------------------------------

# count LOG: prints "passed skipped", added up over the summaries that cargo, ExUnit, pytest and our own runners print.
count() {
  sed 's/\x1b\[[0-9;]*m//g' "$1" | awk '
    function before(word,   n) { n = 0; for (i = 2; i <= NF; i++) if ($i ~ "^" word "[,;]?$") n += $(i - 1); return n }
    /^test result: /                                   { passed += before("passed"); skipped += before("ignored"); next }
    /^[0-9]+ (doctests?|propert(y|ies)|tests?),.* failures?/ {
      passed += before("doctests?") + before("propert(y|ies)") + before("tests?") - before("failures?") \
        - before("excluded") - before("skipped")
      skipped += before("skipped"); next
    }
    /^(=+ )?[0-9]+ (passed|failed)/ || /^=+ .*[0-9]+ (failed|skipped|xfailed|passed)/ {
      passed += before("passed"); skipped += before("skipped") + before("xfailed") + before("xpassed")
    }
    END { print passed + 0, skipped + 0 }'
}

declare -a TABLE=()
failed=0

run_suite() {
  local name="$1" log="$LOGS/$1.log" started=$SECONDS status=0 limit="$SUITE_TIMEOUT" passed skipped verdict pid left
  if [ -n "$RUN_UNTIL" ]; then
    left=$((RUN_UNTIL - $(date +%s)))
    # `timeout 0` would be for ever.
    if [ "$left" -lt "$limit" ]; then limit=$((left > 0 ? left : 1)); fi
  fi
  say "$name"
  : >"$log"
  # Straight into a file that `tail` shows: with a pipe, a process that a test left behind would hang us here.
  SNAKEPIT_TEST_RUN="$RUN_ID" timeout --kill-after=10 "$limit" "$0" --inside "$name" >"$log" 2>&1 </dev/null &
  pid=$!
  tail -n +1 -s 0.2 --pid="$pid" -f "$log"
  wait "$pid" || status=$?
  read -r passed skipped < <(count "$log")
  if [ "$status" -eq 124 ] || [ "$status" -eq 137 ]; then
    verdict="FAILED: not done after $limit s"
  elif [ "$status" -ne 0 ]; then
    verdict="FAILED: exit status $status"
  elif [ "$passed" -eq 0 ]; then
    verdict="FAILED: it ran no test"
  elif [ "$skipped" -ne 0 ]; then
    verdict="FAILED: $skipped skipped"
  else
    verdict="ok"
  fi
  [ "$verdict" = ok ] || failed=1
  TABLE+=("$(printf '%-10s %6d passed %5d s   %s' "$name" "$passed" $((SECONDS - started)) "$verdict")")
}

# --- what was left behind -------------------------------------------------------------------------------------------

shm_entries() { find /dev/shm -mindepth 1 -maxdepth 1 -printf '%f\n' 2>/dev/null | sort; }

# Processes that descend from a suite carry its mark in their environment, wherever they were re-parented to.
marked_processes() {
  local dir
  for dir in $(env -u SNAKEPIT_TEST_RUN grep -lszF "SNAKEPIT_TEST_RUN=$RUN_ID" /proc/[0-9]*/environ || true); do
    printf '%s %s\n' "$(basename "$(dirname "$dir")")" "$(tr '\0' ' ' <"$(dirname "$dir")/cmdline" 2>/dev/null)"
  done
}

# Entries that were not there before, but for those of somebody else who works here at the same time: a living process
# has them open, or they are named for one. (Our own living processes are found above.)
new_entries() {
  local entry
  comm -13 "$LOGS/shm-before" <(shm_entries) | while read -r entry; do
    in_use "$entry" || printf '%s\n' "$entry"
  done
}
in_use() {
  local pid
  while read -r pid; do
    [ ! -d "/proc/$pid" ] || return 0
  done < <(grep -oE '[0-9]{2,}' <<<"$1" || true)
  grep -qsF "/dev/shm/$1" /proc/[0-9]*/maps ||
    find /proc/[0-9]*/fd -lname "/dev/shm/$1*" -print -quit 2>/dev/null | grep -q .
}

# Background threads and detached children may still be on their way out: wait for the condition, within a bound.
check_leftovers() {
  local files processes deadline=$((SECONDS + 15))
  while :; do
    processes="$(marked_processes)"
    files="$(new_entries)"
    if [ -z "$files$processes" ]; then
      TABLE+=("$(printf '%-10s nothing in /dev/shm, no process' leftovers)")
      return
    fi
    [ "$SECONDS" -lt "$deadline" ] || break
    sleep 0.5
  done
  failed=1
  TABLE+=("$(printf '%-10s FAILED' leftovers)")
  [ -z "$files" ] || TABLE+=("  in /dev/shm:" "$files")
  [ -z "$processes" ] || TABLE+=("  processes:" "$processes")
}

# --- main -----------------------------------------------------------------------------------------------------------

if [ "${1:-}" = --inside ]; then
  "suite_$2"
  exit
fi

suites=("$@")
[ ${#suites[@]} -ne 0 ] || suites=("${ALL[@]}")
for suite in "${suites[@]}"; do
  declare -F "suite_$suite" >/dev/null || die "no suite called $suite" "There are: ${ALL[*]}"
done
mkdir -p "$LOGS"
RUN_ID="$$-$(date +%s%N)"
shm_entries >"$LOGS/shm-before"

for suite in "${suites[@]}"; do
  # Of all of them only this one needs what `make setup` may have found no way to install; by name, it fails.
  if [ "$suite" = counts ] && [ $# -eq 0 ] && ! have valgrind; then
    TABLE+=("$(printf '%-10s NOT RUN: valgrind is missing' counts)")
    continue
  fi
  run_suite "$suite"
done
check_leftovers

echo
printf '%s\n' "${TABLE[@]}"
if [ "$failed" -ne 0 ]; then
  echo "FAILED"
  exit 1
fi
echo "all green"
