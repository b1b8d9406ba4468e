#!/bin/bash
# instructions.sh - what a 4 KiB null read costs the worker, in instructions, as callgrind counts them within
# `worker` of tests/benches/instructions.rs: the same number on every machine for the same compiler.
# Fails if it is above the budget. BUDGET=N overrides it.
set -euo pipefail
cd "$(dirname "$0")/../.."
budget=${BUDGET:-$(grep -v '^#' tests/bench/instructions.budget)}
turns=2000
bench=$(cargo bench --quiet -p vireo-tests --bench instructions --no-run --message-format=json |
    sed -n 's/.*"executable":"\([^"]*instructions-[^"]*\)".*/\1/p' | tail -1)
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
printf '%-28s %12s %14s\n' 'null read, lease, 4 KiB' 'commands' 'instructions'
over=0
for depth in 1 32; do
    reads=$(valgrind --quiet --tool=callgrind --callgrind-out-file="$out/$depth" \
        --toggle-collect='instructions::worker*' "$bench" "$depth" "$turns" 2>"$out/log" |
        sed -n 's/^reads //p') || { cat "$out/log" >&2; exit 1; }
    total=$(sed -n 's/^\(summary\|totals\): //p' "$out/$depth" | head -1)
    each=$((total / reads))
    printf '  depth %-20s %12s %14s\n' "$depth" "$reads" "$each"
    if [ "$depth" = 32 ] && [ "$each" -gt "$budget" ]; then over=$each; fi
done
if [ "$over" -gt 0 ]; then
    echo "instructions: $over a read are more than the budget of $budget (tests/bench/instructions.budget)" >&2
    exit 1
fi
