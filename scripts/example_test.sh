#!/usr/bin/env bash
# Checks the example application: all of it with small measurements, into a folder of its own.
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

files="$(mktemp -d)"
trap 'rm -rf "$files"' EXIT

output="$(EXAMPLE_QUICK=1 EXAMPLE_OUT="$files" scripts/example.sh 2>&1)" || die "the example failed" "$output"
for ending in svg png; do
  [ -s "$files/workers.$ending" ] || die "the example drew no workers.$ending" "$output"
done
for line in "^  blur  " "^  negative  " "workers killed at random: all right" "no region is left" "^  nothing"; do
  grep -q "$line" <<<"$output" || die "the example does not say '$line'" "$output"
done
# What the example checks by itself, and the files and lines above.
checked="$(grep -c '^  ok  ' <<<"$output")"
echo "$((checked + 7)) passed"
