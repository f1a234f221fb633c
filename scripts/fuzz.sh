#!/usr/bin/env bash
# Runs every fuzz target for a while: scripts/fuzz.sh SECONDS
set -euo pipefail
seconds=${1:-60}
cd "$(dirname "$0")/../fuzz"
command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
# The sanitizer flags are unstable; this lets the stable compiler take them.
export RUSTC_BOOTSTRAP=1
for target in $(cargo fuzz list); do
  echo "== $target, $seconds s"
  cargo fuzz run "$target" -- -max_total_time="$seconds" -rss_limit_mb=2048
done
