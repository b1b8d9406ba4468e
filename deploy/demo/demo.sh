#!/bin/bash
# demo.sh - a Linux guest on a Vireo drive: builds, starts `vireo up`, boots Debian in QEMU with the
# drive over vfio-user, and shows the guest's own view of it. Leaves nothing behind but caches.
# Exit code 0 only if every step succeeded. GUEST_ARGS: more options for tests/guest/run.sh.
set -euo pipefail
cd "$(dirname "$0")/../.."

if [ -t 1 ]; then bold=$'\e[1m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'; else bold='' green='' red='' plain=''; fi
heading() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }

# Rows of the table: result, step, figure, divided by tabs.
row() { printf '%s\t%s\t%s\n' "$@" >>"$work/summary"; }

work=$(mktemp -d "${TMPDIR:-/tmp}/vireo-demo.XXXXXX")
vireo=
cleanup() {
    if [ -n "$vireo" ] && kill -TERM "$vireo" 2>/dev/null; then
        timeout 10 tail --pid="$vireo" -f /dev/null || kill -KILL "$vireo" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

build() {
    local start=$SECONDS
    heading "Building Vireo (release)"
    cargo build --release --locked --bins
    row ok "vireo built" "$((SECONDS - start)) s"
    start=$SECONDS
    heading "Preparing a Debian guest and a QEMU with vfio-user (kept for the next time)"
    bash tests/guest/build.sh
    row ok "guest prepared" "$((SECONDS - start)) s"
}

# start_vireo : returns once the endpoint's socket is there and the supervisor says that all is ready.
start_vireo() {
    local start=$SECONDS target=${CARGO_TARGET_DIR:-target}
    heading "Starting vireo up"
    sed -e "s|/run/vireo|$work/run|" -e "s|/var/lib/vireo|$work/state|" deploy/demo/vireo.toml >"$work/vireo.toml"
    mkdir -p "$work/run" "$work/state"
    "$target/release/vireo" up --config "$work/vireo.toml" </dev/null >"$work/log" 2>&1 &
    vireo=$!
    until [ -S "$work/run/vm0/cntrl" ] && grep -qi 'ready' "$work/log"; do
        if ! kill -0 "$vireo" 2>/dev/null || [ $((SECONDS - start)) -gt 30 ]; then
            cat "$work/log"
            row failed "vireo up" "not ready; its output is above"
            return 1
        fi
        sleep 0.1
    done
    cat "$work/log"
    row ok "vireo up" "three namespaces on $(basename "$work")/run/vm0"
}

boot_guest() {
    local start=$SECONDS code=0 more=()
    heading "Booting the guest: what follows is its own view"
    [ -z "${GUEST_ARGS:-}" ] || read -r -a more <<<"$GUEST_ARGS"
    bash tests/guest/run.sh --drive "$work/run/vm0" --memory 1024 --time 600 --out "$work/out" \
        "${more[@]}" deploy/demo/in-guest.sh || code=$?
    [ ! -f "$work/out/summary" ] || cat "$work/out/summary" >>"$work/summary"
    if [ "$code" = 0 ]; then
        row ok "guest ran and shut down" "$((SECONDS - start)) s"
    else
        row failed "guest ran and shut down" "exit code $code"
        heading "The last lines of vireo's output"
        tail -n 20 "$work/log"
    fi
    kill -0 "$vireo" 2>/dev/null || row failed "vireo still runs" "it ended during the demo"
    return "$code"
}

show_summary() {
    local result step figure
    heading "Summary"
    while IFS=$'\t' read -r result step figure; do
        case $result in
        ok) printf '  %s✓%s' "$green" "$plain" ;;
        *) printf '  %s✗%s' "$red" "$plain" ;;
        esac
        printf ' %-28s %s\n' "$step" "$figure"
    done <"$work/summary"
}

build
if start_vireo; then boot_guest || true; fi
show_summary
! grep -q '^failed' "$work/summary"
