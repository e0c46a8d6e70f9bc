#!/usr/bin/env bash
# ExUnit on the Elixir of Debian 13 (1.18, OTP 27), warnings as errors, in a root directory of its own that is made
# with debootstrap once and kept in target/. Needs root and half a gigabyte; the Rust toolchain is the one here.
#
#   scripts/trixie.sh [arguments of `mix test`]
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

SUITE=trixie
TRIXIE="$ROOT/target/trixie"
PACKAGES=elixir,erlang-nox,erlang-dev,gcc,libc6-dev,git,ca-certificates,procps

[ "$(id -u)" -eq 0 ] || die "this needs root: it makes a root directory and changes into it." "Run:  sudo $0"
SYSROOT="$(rustc --print sysroot)"
[ "$SYSROOT" != /usr ] || die "the Rust toolchain lies in /usr, which cannot be lent to another system." \
  "Get one with rustup (https://rustup.rs)."
CARGO="${CARGO_HOME:-$HOME/.cargo}"

if ! have debootstrap; then
  say "apt-get install debootstrap"
  DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends debootstrap >/dev/null </dev/null ||
    die "apt-get could not install debootstrap."
fi

if [ ! -e "$TRIXIE/.ready" ]; then
  say "debootstrap $SUITE (a minute or two, once)"
  rm -rf "$TRIXIE"
  mkdir -p "$TRIXIE"
  # From where this machine gets its own packages.
  mirror="$(apt-get indextargets --format '$(SITE)' 2>/dev/null | grep -v security | head -n1 || true)"
  known=/usr/share/debootstrap/scripts/$SUITE
  [ -e "$known" ] || known=/usr/share/debootstrap/scripts/sid
  debootstrap --variant=minbase --include="$PACKAGES" "$SUITE" "$TRIXIE" ${mirror:+"$mirror"} "$known" >"$TRIXIE.log" 2>&1 ||
    die "debootstrap failed." "$(tail -n 5 "$TRIXIE.log")"
  touch "$TRIXIE/.ready"
fi

# What is tracked, as it is now; what was built there before stays.
rm -rf "$TRIXIE/src/lib" "$TRIXIE/src/test" "$TRIXIE/src/native"
mkdir -p "$TRIXIE/src" "$TRIXIE$SYSROOT" "$TRIXIE$CARGO"
git ls-files -z | while IFS= read -r -d '' file; do
  [ ! -e "$file" ] || printf '%s\0' "$file"
done | tar --null --files-from=- --create | tar --extract --directory "$TRIXIE/src"

say "mix test on $SUITE"
# Mounts that nobody else sees, and that are gone with us.
export TRIXIE SYSROOT CARGO LC_ALL SNAKEPIT_TEST_RUN="${SNAKEPIT_TEST_RUN:-}"
exec unshare --mount bash -euc '
  mount -t proc proc "$TRIXIE/proc"
  mount --rbind /dev "$TRIXIE/dev"
  mount --bind "$SYSROOT" "$TRIXIE$SYSROOT"
  mount --bind "$CARGO" "$TRIXIE$CARGO"
  exec chroot "$TRIXIE" env -i HOME=/root TERM=dumb LC_ALL=C.UTF-8 ELIXIR_ERL_OPTIONS=+fnu MIX_ENV=test \
    PATH="$SYSROOT/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
    CARGO_HOME="$CARGO" CARGO_NET_OFFLINE=true SNAKEPIT_TEST_RUN="$SNAKEPIT_TEST_RUN" \
    bash -euc "cd /src
      elixir --version | tail -n1
      mix compile --force --warnings-as-errors
      mix test --exclude interop --warnings-as-errors \"\$@\"" mix-test "$@"
' trixie "$@"
