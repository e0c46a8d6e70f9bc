#!/usr/bin/env bash
# ExUnit on the Elixir of Debian 13 (1.18, OTP 27), warnings as errors, in a root directory of its own that is made
# with debootstrap once and kept in target/. Needs root and half a gigabyte; the Rust toolchain is the one here.
#
#   scripts/trixie.sh [arguments of `mix test`]
#   scripts/trixie.sh --possible      only says why it cannot be run here, and ends with status 1 then
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

SUITE=trixie
TRIXIE="$ROOT/target/trixie"
PACKAGES=elixir,erlang-nox,erlang-dev,gcc,libc6-dev,git,ca-certificates,procps

SYSROOT="$(rustc --print sysroot)"
[ "$(id -u)" -eq 0 ] || die "this needs root: it makes a root directory and changes into it." "Run:  sudo $0"
unshare --mount true 2>/dev/null || die "this needs mounts of its own, which are forbidden here (a container?)."
[ "$SYSROOT" != /usr ] || die "the Rust toolchain lies in /usr, which cannot be lent to another system." \
  "Get one with rustup (https://rustup.rs)."
[ "${1:-}" != --possible ] || exit 0
CARGO="${CARGO_HOME:-$HOME/.cargo}"

have debootstrap || install_packages debootstrap

if [ "$(cat "$TRIXIE/.ready" 2>/dev/null || true)" != "$PACKAGES" ]; then
  say "debootstrap $SUITE (a minute or two, once)"
  rm -rf "$TRIXIE"
  mkdir -p "$TRIXIE"
  # From where this machine gets its own packages.
  mirror="$(apt-get indextargets --format '$(SITE)' 2>/dev/null | grep -v security | head -n1 || true)"
  known=/usr/share/debootstrap/scripts/$SUITE
  [ -e "$known" ] || known=/usr/share/debootstrap/scripts/sid
  debootstrap --variant=minbase --include="$PACKAGES" "$SUITE" "$TRIXIE" ${mirror:+"$mirror"} "$known" >"$TRIXIE.log" 2>&1 ||
    die "debootstrap failed." "$(tail -n 5 "$TRIXIE.log")"
  # Half a gigabyte of downloads that are installed.
  rm -f "$TRIXIE"/var/cache/apt/archives/*.deb
  printf '%s\n' "$PACKAGES" >"$TRIXIE/.ready"
fi

# What is tracked, as it is now; what was built there before stays.
rm -rf "$TRIXIE/src/lib" "$TRIXIE/src/test" "$TRIXIE/src/native"
mkdir -p "$TRIXIE/src" "$TRIXIE$SYSROOT" "$TRIXIE$CARGO"
git ls-files -z | while IFS= read -r -d '' file; do
  [ ! -e "$file" ] || printf '%s\0' "$file"
done | tar --null --files-from=- --create | tar --extract --directory "$TRIXIE/src"

say "mix test on $SUITE"
# Mounts that nobody else sees, and that are gone with us. The root is one too, as it is on any machine: what lies
# where no mount is seen has a file system without a name.
export TRIXIE SYSROOT CARGO LC_ALL SNAKEPIT_TEST_RUN="${SNAKEPIT_TEST_RUN:-}"
exec unshare --mount bash -euc '
  mount --bind "$TRIXIE" "$TRIXIE"
  mount -t proc proc "$TRIXIE/proc"
  mount --rbind /sys "$TRIXIE/sys"
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
