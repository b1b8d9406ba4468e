# Functions of every script that runs in the guest (bash reads this file by BASH_ENV).
# shellcheck shell=bash

# await: the next line that the test on the host sends over the control channel, to stdout.
# Fails when the test has closed the channel.
await() {
    local line
    IFS= read -r line <&9 && printf '%s\n' "$line"
}

# tell WORDS...: one line to the test.
tell() { printf '%s\n' "$*" >&9; }

# within SECONDS COMMAND...: repeats the command until it succeeds, or fails after that time.
within() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.1
    done
}

# namespace NSID [CONTROLLER]: its block device, to stdout. The kernel scans namespaces in parallel,
# so that nvme0n1 may well be NSID 2: never guess a name. Fails while it is not there.
namespace() {
    local file
    for file in /sys/class/nvme/"${2:-nvme0}"/nvme*n*/nsid; do
        if [ -e "$file" ] && [ "$(cat "$file" 2>/dev/null)" = "$1" ]; then
            file=${file%/nsid}
            printf '/dev/%s\n' "${file##*/}"
            return
        fi
    done
    return 1
}
