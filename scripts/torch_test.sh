#!/usr/bin/env bash
# Tensors of torch through the Python package, with Debian's own torch and Python: a tenth of what PyPI's wheel has.
# Installs what is missing of it.
#
#   scripts/torch_test.sh [arguments of pytest]
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

SYSTEM_PYTHON=/usr/bin/python3
# What is looked for, and the Debian packages that bring it.
missing_packages() {
  "$SYSTEM_PYTHON" -s -c 'import sys; from importlib.util import find_spec
print(*("python3-" + m.replace("_", "-") for m in sys.argv[1:] if not find_spec(m)))' torch numpy pytest pytest_timeout
}

# What apt-get installs is found by Debian's Python only, whichever Python is first on the PATH.
have dpkg-query || die "suite torch: this is no Debian (dpkg-query is missing), and it needs Debian's python3-torch."
[ -x "$SYSTEM_PYTHON" ] || install_packages python3
found="$(readlink -f "$SYSTEM_PYTHON")"
dpkg-query --search "$found" >/dev/null 2>&1 ||
  die "suite torch: $SYSTEM_PYTHON is $found, which is not Debian's: no package has it." \
    "Debian's python3-torch is for Debian's Python. Put back what the package python3-minimal had there."
version="$("$SYSTEM_PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
wanted="$(min_python)"
at_least "$version" "$wanted" ||
  die "suite torch: $SYSTEM_PYTHON is $version, and Python $wanted or newer is needed (Debian 12 has 3.11)."

read -r -a packages <<<"$(missing_packages)"
[ ${#packages[@]} -eq 0 ] || install_packages "${packages[@]}"

say "$(dpkg-query --show --showformat '${Package} ${Version}  ' python3-minimal python3-numpy python3-torch)"
# The package as it was built here, in the stable ABI; the other process of the tests is the environment's Python.
cd native/python
exec env -u VIRTUAL_ENV PYTHONPATH=python SNAKEPIT_TEST_NUMPY_PYTHON="$VENV/bin/python" \
  "$SYSTEM_PYTHON" -s -m pytest tests/test_torch.py "$@"
