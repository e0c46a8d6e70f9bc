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

# The oldest Python that the package promises.
min_python() { sed -n 's/^requires-python *= *">=\(.*\)"/\1/p' native/python/pyproject.toml; }

# install_packages PACKAGE...: Debian's, by apt-get; says so, and never asks anything.
install_packages() {
  local packages=("$@") become=()
  have apt-get || die "missing: ${packages[*]} (Debian's package names), and there is no apt-get here." \
    "Install them with your system's package manager and run this again."
  if [ "$(id -u)" -ne 0 ]; then
    if have sudo && sudo -n true 2>/dev/null; then
      become=(sudo -n)
    else
      die "missing: ${packages[*]}, and installing them needs root." \
        "Run:  sudo apt-get install -y ${packages[*]}" "then this again."
    fi
  fi
  say "apt-get install ${packages[*]}"
  local apt=("${become[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dpkg::Use-Pty=0)
  "${apt[@]}" update </dev/null >/dev/null || note "apt-get update failed; trying with the lists that are there"
  "${apt[@]}" install --no-install-recommends "${packages[@]}" </dev/null >/dev/null ||
    die "apt-get could not install: ${packages[*]}" "Its own message is above."
}
