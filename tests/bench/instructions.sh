#!/bin/bash
# instructions.sh - what a 4 KiB null read costs the worker, in instructions, as callgrind counts them within
# `worker` of tests/benches/instructions.rs: the same number on every machine for the same compiler.
# Fails if it is above the budget (BUDGET=N overrides it), or if tracing one read in a thousand costs more than 1 % of it.
set -euo pipefail
cd "$(dirname "$0")/../.."
budget=${BUDGET:-$(grep -v '^#' tests/bench/instructions.budget)}
turns=2000
bench=$(cargo bench --quiet -p vireo-tests --bench instructions --no-run --message-format=json |
    sed -n 's/.*"executable":"\([^"]*instructions-[^"]*\)".*/\1/p' | tail -1)
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

# count LABEL DEPTH [SAMPLE]: prints a line; leaves reads and their instructions in $reads and $total.
count() {
    local label=$1
    shift
    reads=$(valgrind --quiet --tool=callgrind --callgrind-out-file="$out/count" \
        --toggle-collect='instructions::worker*' "$bench" "$1" "$turns" "${@:2}" 2>"$out/log" |
        sed -n 's/^reads //p') || { cat "$out/log" >&2; exit 1; }
    total=$(sed -n 's/^\(summary\|totals\): //p' "$out/count" | head -1)
    awk -v label="$label" -v reads="$reads" -v total="$total" \
        'BEGIN { printf "  %-26s %12d %14.1f\n", label, reads, total / reads }'
}

printf '%-28s %12s %14s\n' 'null read, lease, 4 KiB' 'commands' 'instructions'
count 'depth 1' 1
count 'depth 32' 32
each=$((total / reads))
if [ "$each" -gt "$budget" ]; then
    echo "instructions: $each a read are more than the budget of $budget (tests/bench/instructions.budget)" >&2
    exit 1
fi
count 'depth 32, tracing off' 32 0
off=$((total * 1000 / reads))
count 'depth 32, 1 in 1000 traced' 32 1000
traced=$((total * 1000 / reads))
count 'depth 32, each traced' 32 1
if [ $((traced * 100)) -gt $((off * 101)) ]; then
    echo "instructions: tracing 1 read in 1000 costs more than 1 %: $traced thousandths, $off without" >&2
    exit 1
fi
