#!/bin/bash
# Counts the driver's instructions for a 4 KiB read at depth 128, by callgrind, and fails above the limits.
#
#   instructions.sh [BENCH]    the bench's binary; built if not given
set -euo pipefail
limit=100
bench=${1:-$(cargo bench -q -p nvme-driver --bench cost --no-run --message-format=json |
    sed -n 's/.*"executable":"\([^"]*cost-[^"]*\)".*/\1/p' | tail -n 1)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
status=0
for part in submit complete; do
    valgrind --tool=callgrind --callgrind-out-file="$work/$part" --collect-atstart=no \
        --toggle-collect="*${part}_burst*" "$bench" --count >"$work/log" 2>&1 ||
        { cat "$work/log" && exit 1; }
    total=$(sed -n 's/^\(totals\|summary\): //p' "$work/$part" | head -n 1)
    # 20 bursts of 128.
    each=$((total / 20 / 128))
    printf '%-8s %4d instructions, at most %d\n' "$part" "$each" "$limit"
    [ "$each" -le "$limit" ] || status=1
done
exit $status
