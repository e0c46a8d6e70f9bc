#!/usr/bin/env bash
# Checks the demo: its parts, then all of it with small measurements, on each kind of file, and on files it must refuse.
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

files="$(mktemp -d)"
trap 'rm -rf "$files"' EXIT
passed=0

mix run --no-start examples/demo/check.exs

python - "$files" <<'PYTHON'
import sys
import numpy as np

folder = sys.argv[1]
rng = np.random.default_rng(7)
values = rng.normal(size=(40, 50)).astype("<f4")
values[3, 4], values[5, 6] = np.nan, np.inf
np.save(f"{folder}/floats.npy", values)
np.save(f"{folder}/whole.npy", rng.integers(-(2**62), 2**62, size=5000))
np.save(f"{folder}/big-endian.npy", rng.normal(size=300).astype(">f8"))
np.save(f"{folder}/complex.npy", rng.normal(size=30).astype("<c16"))
np.save(f"{folder}/picture.npy", rng.integers(0, 256, size=(60, 31, 3), dtype=np.uint8))
np.save(f"{folder}/columns.npy", np.asfortranarray(values))
np.save(f"{folder}/none.npy", np.zeros((0, 3)))
PYTHON
printf 'x' >"$files/one-byte"
head -c 20000 /proc/self/exe >"$files/bytes"
: >"$files/empty"
printf '\x89PNG\r\n\x1a\nnothing more' >"$files/cut.png"

# Quick, and into a folder of its own: a picture that the user made stays.
demo() { DEMO_QUICK=1 DEMO_OUT="$files/out" scripts/demo.sh "$1" 2>&1; }

works() {
  local output
  output="$(demo "$1")" || die "the demo failed on ${1:-its photograph}" "$output"
  [ -s "$files/out/before-after.png" ] || die "the demo drew no picture of ${1:-its photograph}" "$output"
  rm "$files/out/before-after.png"
  grep -q "equals\? Elixir's" <<<"$output" || die "the demo compared nothing on ${1:-its photograph}" "$output"
  passed=$((passed + 1))
}

refuses() {
  local output
  if output="$(demo "$1")"; then die "the demo took $1" "$output"; fi
  grep -q "$2" <<<"$output" || die "the demo does not say '$2' of $1" "$output"
  passed=$((passed + 1))
}

works ""
for file in floats.npy whole.npy big-endian.npy complex.npy picture.npy one-byte bytes; do works "$files/$file"; done
refuses "$files/columns.npy" "column-major"
refuses "$files/none.npy" "can be shared"
refuses "$files/empty" "can be shared"
refuses "$files/cut.png" "ends too early"
refuses "$files/absent" "no such file"
echo "$passed passed"
