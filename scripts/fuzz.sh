#!/usr/bin/env bash
# Runs every fuzz target for a while: scripts/fuzz.sh SECONDS
set -euo pipefail
seconds=${1:-60}
cd "$(dirname "$0")/../fuzz"
# Where fuzzing begins, beside what it found before.
cargo run --quiet --manifest-path ../Cargo.toml -p estargz --example seeds -- corpus
command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
# The sanitizer flags are unstable; this lets the stable compiler take them.
export RUSTC_BOOTSTRAP=1
for target in $(cargo fuzz list); do
  echo "== $target, $seconds s"
  # A scope of threads ends before their thread-local values are freed, which looks like a leak.
  cargo fuzz run "$target" -- -max_total_time="$seconds" -rss_limit_mb=2048 -detect_leaks=0
done
