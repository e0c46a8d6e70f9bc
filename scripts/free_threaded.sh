#!/usr/bin/env bash
# The Python package on a free-threaded interpreter, 3.14 or newer, that FREE_THREADED_PYTHON names: built for it (the
# stable ABI is not for it), installed in an environment of its own in target/, and its tests run there.
#
#   FREE_THREADED_PYTHON=python3.14t scripts/free_threaded.sh [arguments of pytest]
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

python="${FREE_THREADED_PYTHON:-}"
[ -n "$python" ] || die "FREE_THREADED_PYTHON names no interpreter." \
  "None is installed for this. With one:  FREE_THREADED_PYTHON=/path/to/python3.14t make test-free-threaded"
have "$python" || die "FREE_THREADED_PYTHON: there is no $python."
disabled="$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("Py_GIL_DISABLED") or 0)')"
[ "$disabled" = 1 ] || die "FREE_THREADED_PYTHON: $python ($("$python" --version)) is not free-threaded." \
  "It is one of those whose name ends in t, built with --disable-gil."

place="$ROOT/target/free-threaded"
venv="$place/venv"
in="$venv/bin/python"
mkdir -p "$place"
install() { "$in" -m pip install --quiet --disable-pip-version-check --no-input --only-binary :all: "$@" 2>/dev/null; }

# What the tests import, in the versions that pyproject.toml names or, of what has none for this interpreter, in others.
# Nothing is built here: what has no wheel at all is named, and so are the tests that are left out for it.
libraries='hypothesis ml_dtypes pandas polars pyarrow'
wanted="$(python scripts/dev_requirements.py native/python/pyproject.toml |
  grep -E "^(numpy|pytest|pytest-timeout|$(tr ' _' '|-' <<<"$libraries"))==")"
hash="$("$python" -c 'import sys; print(sys.version, sys.base_prefix)')$wanted"
if [ "$(cat "$place/.ready" 2>/dev/null || true)" != "$hash" ]; then
  say "an environment for $("$python" --version) in $venv"
  "$python" -m venv --clear "$venv"
  for requirement in $wanted; do
    install "$requirement" || install "${requirement%%==*}" || note "no wheel of $requirement"
  done
  printf '%s' "$hash" >"$place/.ready"
fi

say "maturin build for $("$in" --version)"
rm -rf "$place/wheel"
CARGO_TARGET_DIR="$place" python -m maturin build --quiet --release --locked --manifest-path native/python/Cargo.toml \
  --interpreter "$in" --out "$place/wheel"
install --no-deps --force-reinstall "$place"/wheel/*.whl || die "pip could not install $(echo "$place"/wheel/*.whl)."

# A module that is not made for it would switch the interpreter lock on, with a warning.
"$in" -W error -c 'import sys, snakepit_shm; assert not sys._is_gil_enabled()'

cd native/python
left_out=()
for library in $libraries; do
  "$in" -c "import $library" 2>/dev/null && continue
  for file in $(grep -lE "^(import|from) $library\b" tests/test_*.py); do
    note "NOT RUN: $file (no $library for this interpreter)"
    left_out+=("--ignore=$file")
  done
done
exec "$in" -m pytest "${left_out[@]}" "$@"
