#!/usr/bin/env bash
# Runs the demo, on the file given or on a photograph that a Python package ships (fetched once).
#
#   scripts/demo.sh [FILE]          DEMO_QUICK=1 for small sizes

# As the caller means it, before we change the directory.
file="${1:+$(realpath -m "$1")}"
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

if [ -z "$file" ]; then
  file="$VENV/demo/astronaut.png"
  if [ ! -e "$file" ]; then
    say "getting the demo's photograph out of the package scikit-image"
    python scripts/demo_data.py "$file"
  fi
fi
[ -e "$file" ] || die "no such file: $file"

# Not started by mix: the demo gives the app its own namespace first.
exec mix run --no-start examples/demo/demo.exs "$file"
