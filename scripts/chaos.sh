#!/usr/bin/env bash
# Processes in three languages, a killer among them, and a judge: see test/chaos/chaos/__main__.py.
#
#   scripts/chaos.sh                          3 minutes, a new seed
#   scripts/chaos.sh --seconds 20 --seed 1    a short one; a seed repeats what is done
#   HOURS=24 scripts/chaos.sh                 a long one
#
# The log of what was done, the figures and the plot go to test/chaos/results/.
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

target="${CARGO_TARGET_DIR:-$ROOT/target}"
manifest=test/chaos/peer/Cargo.toml
# The versions that the workspace is built with, and what only the peer needs besides.
[ test/chaos/peer/Cargo.lock -nt Cargo.lock ] || cp Cargo.lock test/chaos/peer/Cargo.lock
cargo build --quiet --release --manifest-path "$manifest" --target-dir "$target"
mix compile --no-deps-check >/dev/null

args=(--peer "$target/release/chaos-peer" --elixir "$ROOT/_build/${MIX_ENV:-dev}/lib/snakepit_shared_memory/ebin")
if [ -n "${HOURS:-}" ]; then
  args+=(--seconds "$(awk -v h="$HOURS" 'BEGIN { printf "%d", h * 3600 }')")
fi

# A judge that finds nothing proves nothing: first it is shown every fault that it is there to find.
python -m unittest discover --quiet --start-directory test/chaos

# A mount namespace of its own lets a small tmpfs be filled and freed without anybody else seeing it.
export PYTHONPATH="$ROOT/test/chaos${PYTHONPATH:+:$PYTHONPATH}"
for user in "" "--user --map-root-user"; do
  read -ra own <<<"unshare --mount $user"
  if "${own[@]}" true 2>/dev/null; then
    exec "${own[@]}" python -m chaos "${args[@]}" --own-mounts "$@"
  fi
done
exec python -m chaos "${args[@]}" "$@"
