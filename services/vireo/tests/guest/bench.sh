#!/bin/bash
# bench.sh - the classic experiment: one drive, a Vireo controller served on this machine to a Linux guest, driven there
# by the kernel's driver under fio and then, over VFIO, by `vireo perf`; both figures side by side.
#
# Wants the programs in target/release and the test guest (`make guest`); `make bench-guest` sees to both. Seconds of each
# load in SECONDS_EACH (10).
set -euo pipefail
root=$(cd "$(dirname "$0")/../../../.." && pwd)
programs=${VIREO_BIN_DIR:-$root/target/release}
each=${SECONDS_EACH:-10}

work=$(mktemp -d "${TMPDIR:-/tmp}/vireo-bench.XXXXXX")
target=''
# shellcheck disable=SC2317 # called by the trap
cleanup() {
    [ -z "$target" ] || { kill -TERM "$target" 2>/dev/null && wait "$target" 2>/dev/null; } || true
    rm -rf "$work"
}
trap cleanup EXIT

mkdir "$work/run" "$work/state"
cat >"$work/vireo.toml" <<TOML
runtime_dir = "$work/run"
state_dir = "$work/state"
[[worker]]
name = "w0"
[[backend]]
name = "b0"
[[frontend]]
name = "f0"
[[bdev]]
name = "mem0"
driver = "malloc"
size = "256MiB"
[[subsystem]]
name = "s0"
serial = "BENCH0001"
[[subsystem.namespace]]
nsid = 1
bdev = "mem0"
[[endpoint]]
name = "vm0"
subsystem = "s0"
TOML
"$programs/vireo" up --config "$work/vireo.toml" >"$work/log" 2>&1 &
target=$!
for _ in $(seq 300); do
    grep -q '^ready' "$work/log" && break
    kill -0 "$target" 2>/dev/null || { cat "$work/log" >&2; exit 1; }
    sleep 0.1
done
grep -q '^ready' "$work/log" || { cat "$work/log" >&2; exit 1; }

{ printf 'seconds=%s\n' "$each"; cat "$(dirname "$0")/drive.sh"; } >"$work/drive.sh"
bash "$root/tests/guest/run.sh" --iommu --drive "$work/run/vm0" --time $((120 + 12 * each)) \
    "$work/drive.sh" "$programs/vireo"
