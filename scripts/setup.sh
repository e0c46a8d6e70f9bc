#!/usr/bin/env bash
# Installs what is missing and builds the Python extension. Safe to run at any time: a step that is already done
# costs a few milliseconds, and nothing that is there is replaced.
#
#   scripts/setup.sh
#
# Not installed here: Rust (see the message it prints). Never asks anything.
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

PYTHON="${PYTHON:-python3}"
MIN_PYTHON="$(min_python)"
did=0
act() {
  did=1
  say "$@"
}

# --- system packages ------------------------------------------------------------------------------------------------

# What is looked for, and the Debian package that brings it. Probes only, so that a toolchain that came some other
# way (asdf, pyenv, a container image) is left alone.
missing_packages() {
  have mix && have elixir || echo elixir
  have erl && have erlc || echo erlang-nox
  [ -n "$(erlang_header)" ] || echo erlang-dev
  if ! have cc || ! printf '#include <stdio.h>\n' | cc -E - >/dev/null 2>&1; then echo gcc libc6-dev; fi
  have git || echo git
  have "$PYTHON" || echo python3
  "$PYTHON" -c 'import ensurepip, venv' >/dev/null 2>&1 || echo python3-venv
  [ -e /etc/ssl/certs/ca-certificates.crt ] || [ -n "${SSL_CERT_FILE:-}${PIP_CERT:-}" ] || echo ca-certificates
}

# `erl` itself knows where it lives, but takes half a second to say so: look where installations put the header.
erlang_header() {
  local erl root
  erl="$(readlink -f "$(command -v erl || true)" 2>/dev/null || true)"
  [ -n "$erl" ] || return 0
  root="$(dirname "$(dirname "$erl")")"
  find "$root" -maxdepth 4 -name erl_nif.h -print -quit 2>/dev/null
}

ensure_packages() {
  local packages
  read -r -a packages <<<"$(missing_packages | sort -u | tr '\n' ' ')"
  [ ${#packages[@]} -ne 0 ] || return 0
  did=1
  install_packages "${packages[@]}"
  read -r -a packages <<<"$(missing_packages | sort -u | tr '\n' ' ')"
  [ ${#packages[@]} -eq 0 ] || die "still not found after installing: ${packages[*]}" \
    "Is another program of that name first on the PATH? PYTHON=... says which Python to use."
}

# Wanted, but nothing else waits for it: `make test` counts instructions with it, and says when it cannot.
ensure_valgrind() {
  have valgrind && return
  stamped valgrind missing && return
  # In a shell of its own, for what is missing there ends it.
  (install_packages valgrind) && have valgrind && return
  note "valgrind is not here: make test will not count instructions"
  stamp valgrind missing
}

# --- Rust -----------------------------------------------------------------------------------------------------------

ensure_rust() {
  local wanted found how
  wanted="$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' Cargo.toml)"
  how=("Get it with rustup (Debian's own rustc is too old):"
    "  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y"
    "Already have rustup?  rustup update stable"
    "Then run this again.")
  if ! have cargo || ! have rustc; then
    die "Rust $wanted or newer is needed, and cargo is not on the PATH." "${how[@]}"
  fi
  found="$(rustc --version | cut -d' ' -f2)"
  at_least "${found%%-*}" "$wanted" || die "Rust $wanted or newer is needed; this is $found ($(command -v rustc))." "${how[@]}"
}

# --- Python ---------------------------------------------------------------------------------------------------------

ensure_venv() {
  local version
  version="$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
  at_least "$version" "$MIN_PYTHON" || die "Python $MIN_PYTHON or newer is needed; $PYTHON is $version." \
    "Point PYTHON at a newer one:  PYTHON=python3.13 make setup"
  # A virtual environment breaks when the interpreter it was made from goes away.
  if [ -d "$VENV" ] && ! "$VENV/bin/python" -c '' 2>/dev/null; then
    act "the virtual environment's Python is gone; making .venv again"
    rm -rf "$VENV"
  fi
  if [ ! -x "$VENV/bin/pip" ]; then
    act "making the virtual environment .venv with Python $version"
    "$PYTHON" -m venv "$VENV"
  fi
}

# The development tools are named once, in pyproject.toml.
ensure_python_tools() {
  local hash
  hash="$(cat native/python/pyproject.toml scripts/dev_requirements.py | sha256sum | cut -d' ' -f1)"
  stamped tools "$hash" && return
  act "pip install of the development tools that native/python/pyproject.toml names"
  "$VENV/bin/python" scripts/dev_requirements.py native/python/pyproject.toml >"$VENV/dev-requirements.txt"
  "$VENV/bin/pip" install --quiet --disable-pip-version-check --no-input -r "$VENV/dev-requirements.txt" ||
    die "pip could not install the development tools." "Its own message is above; is a package index reachable?"
  stamp tools "$hash"
}

ensure_extension() {
  local hash
  hash="$(hash_of Cargo.toml Cargo.lock native/core/Cargo.toml native/core/src native/python)"
  stamped extension "$hash" && return
  act "building the Python extension (maturin develop --release)"
  # Delete, then copy: overwriting a library that a running interpreter has loaded would crash it.
  find native/python -name '_native*.so' -delete
  if ! (cd native/python && VIRTUAL_ENV="$VENV" "$VENV/bin/maturin" develop --release </dev/null) >"$VENV/maturin.log" 2>&1; then
    cat "$VENV/maturin.log" >&2
    die "the Python extension could not be built." "What maturin says is above."
  fi
  stamp extension "$hash"
}

# --- Elixir ---------------------------------------------------------------------------------------------------------

# The app has no dependency, but where Hex is installed mix.exs names an optional one (telemetry), and mix wants it there.
ensure_deps() {
  compgen -G "${MIX_HOME:-$HOME/.mix}/archives/hex-*" >/dev/null || return 0
  [ ! -d deps/telemetry ] || return 0
  act "mix deps.get (Hex is installed here)"
  mix deps.get </dev/null >/dev/null
}

ensure_app() {
  local hash
  hash="$(hash_of Cargo.toml Cargo.lock native/core/Cargo.toml native/core/src native/nif lib mix.exs config)"
  stamped app "$hash" && [ -d _build ] && return
  act "compiling the Elixir app and its NIF (mix compile)"
  mix compile </dev/null
  stamp app "$hash"
}

ensure_packages
ensure_valgrind
ensure_rust
ensure_venv
ensure_python_tools
ensure_extension
ensure_deps
ensure_app
if [ "$did" -eq 1 ]; then say "setup: done"; fi
