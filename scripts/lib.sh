# Shared by the scripts beside it; sourced, never run.
# shellcheck shell=bash

set -Eeuo pipefail
# No script ends without saying where.
trap 'printf "error: %s, line %s: %s\n" "$0" "$LINENO" "$BASH_COMMAND" >&2' ERR

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
STAMPS="$VENV/stamps"
cd "$ROOT"

# The BEAM warns under a locale that is not UTF-8; git and sort differ by locale.
export LC_ALL=C.UTF-8
export ELIXIR_ERL_OPTIONS="${ELIXIR_ERL_OPTIONS:-+fnu}"
# Where rustup installs, for shells that were started before it did.
if [ -d "${CARGO_HOME:-$HOME/.cargo}/bin" ]; then
  export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
fi
export PATH="$VENV/bin:$PATH"

say() { printf '%s\n' "==> $*"; }
note() { printf '%s\n' "    $*"; }
die() {
  printf '%s\n' "error: $1" >&2
  shift
  local line
  for line in "$@"; do printf '%s\n' "       $line" >&2; done
  exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# A hash of the contents and names of every source file below those of the given paths that exist.
hash_of() {
  local path paths=()
  for path in "$@"; do [ ! -e "$path" ] || paths+=("$path"); done
  find "${paths[@]}" \
    \( -name target -o -name __pycache__ -o -name '.*_cache' -o -name .hypothesis -o -name '*.egg-info' \) -prune \
    -o -type f ! -name '*.so' ! -name '*.pyc' -print0 |
    sort -z | xargs -0 -r sha256sum | sha256sum | cut -d' ' -f1
}

# stamped NAME HASH: whether step NAME was last completed for exactly HASH.
stamped() { [ -f "$STAMPS/$1" ] && [ "$(cat "$STAMPS/$1")" = "$2" ]; }
stamp() {
  mkdir -p "$STAMPS"
  printf '%s\n' "$2" >"$STAMPS/$1"
}

# at_least HAVE WANT: compares dotted versions.
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n1)" = "$2" ]; }
