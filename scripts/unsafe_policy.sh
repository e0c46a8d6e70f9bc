#!/usr/bin/env bash
# CONTRIBUTING, "Unsafe": unsafe code lives in three files of the core, every other crate forbids it, and no profile
# may abort on panic (that would take the virtual machine with it).
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

status=0
complain() {
  printf '%s\n' "$1" >&2
  status=1
}

core=native/core/src
allowed="^$core/(mapping|copy|platform)(\.rs|/)"
# `unsafe` as a word of code: comments, attributes and lint names do not count.
while IFS=: read -r file line text; do
  [[ "$file" =~ $allowed ]] || complain "$file:$line: unsafe outside mapping, copy and platform: $text"
done < <(grep -rnE '\bunsafe\b[[:space:]]*(\{|fn|impl|trait|extern)' --include='*.rs' native |
  grep -vE '^[^:]+:[0-9]+:[[:space:]]*//')

for lib in native/*/src/lib.rs native/*/src/main.rs; do
  [ -e "$lib" ] || continue
  case "$lib" in
    "$core"/lib.rs) grep -q 'deny(unsafe_code)' "$lib" || complain "$lib: wants #![deny(unsafe_code)]" ;;
    *) grep -q '#!\[forbid(unsafe_code)\]' "$lib" || complain "$lib: wants #![forbid(unsafe_code)]" ;;
  esac
done

# grep exits 1 when it found nothing, which is what is wanted.
if grep -rnE '^[[:space:]]*panic[[:space:]]*=[[:space:]]*"abort"' --include=Cargo.toml Cargo.toml native; then
  complain 'panic = "abort" in a profile'
fi
exit "$status"
