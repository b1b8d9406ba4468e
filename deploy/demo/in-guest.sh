#!/bin/bash
# The part of the demo that runs inside the guest: its own view of the drive. Each step adds a row
# "ok|failed <tab> step <tab> figure" to out/summary; a failed one does not stop the rest.
set -uo pipefail

failures=0

title() { printf '\n── %s\n' "$*"; }

# step NAME FUNCTION : runs it; its last line of $figure is the row's figure.
step() {
    local result=ok
    figure=
    "$2" || result=failed
    [ "$result" = ok ] || failures=$((failures + 1))
    printf '%s\t%s\t%s\n' "$result" "$1" "$figure" >>out/summary
}

list() {
    local nsid
    title "nvme list"
    for nsid in 1 2 3; do within 20 namespace "$nsid" >/dev/null || return 1; done
    memory=$(namespace 1) disk=$(namespace 2) nothing=$(namespace 3)
    nvme list
    figure="3 namespaces, $(uname -sr)"
}

identify() {
    title "nvme id-ctrl -H (the lines that tell most)"
    nvme id-ctrl -H /dev/nvme0 >/tmp/identify || return 1
    grep -E '^(vid|sn|mn|fr|mdts|ver|nn|sqes|cqes|oncs|fuses|vwc|sgls|subnqn) ' /tmp/identify
    sed -n '/Not Supported/d; s/^ *\[[^]]*\] : 0x0*[1-9a-f][0-9a-f]*[ \t]*\(.* Supported\)$/  \1/p' /tmp/identify
    figure=$(sed -n 's/^mn *: *//p; s/^fr *: */firmware /p' /tmp/identify | sed 's/ *$//' | paste -sd, | sed 's/,/, /')
}

# verify DEVICE : writes random blocks of mixed sizes, reads all back and checks each one's CRC.
verify() {
    title "fio verify=crc32c on $1"
    fio --eta=never --name=verify --filename="$1" --ioengine=libaio --direct=1 --iodepth=32 --rw=randwrite \
        --bsrange=4k-64k --size=96M --verify=crc32c --do_verify=1 --verify_fatal=1 \
        --output-format=json --output=/tmp/fio.json || { cat /tmp/fio.json; return 1; }
    jq -r '.jobs[0] | "  write \(.write.io_kbytes / 1024 | round) MiB at \(.write.bw / 1024 | round) MiB/s",
        "  read back and checked \(.read.io_kbytes / 1024 | round) MiB at \(.read.bw / 1024 | round) MiB/s, \(.error) errors"' /tmp/fio.json
    figure=$(jq -r '.jobs[0] | "\(.read.io_kbytes / 1024 | round) MiB checked, \(.error) errors"' /tmp/fio.json)
    [ "$(jq '.jobs[0].error' /tmp/fio.json)" = 0 ] && [ "$(jq '.jobs[0].read.io_kbytes' /tmp/fio.json)" -ge 98304 ]
}
verify_memory() { verify "$memory"; }
verify_disk() { verify "$disk"; }

filesystem() {
    local before after
    title "ext4 on $disk: made, mounted, written, checked"
    mkfs.ext4 -q -F "$disk" || return 1
    mount "$disk" /mnt || return 1
    head -c 64M /dev/urandom >/mnt/data && sync || return 1
    before=$(sha256sum </mnt/data)
    df -h /mnt
    umount /mnt && mount "$disk" /mnt || return 1
    after=$(sha256sum </mnt/data)
    umount /mnt || return 1
    e2fsck -f -n "$disk" || return 1
    figure="64 MiB survive a remount, fsck is clean"
    [ "$before" = "$after" ]
}

rate() {
    title "fio on $nothing: 4 KiB random reads, depth 32, 5 s"
    fio --eta=never --name=rate --filename="$nothing" --ioengine=libaio --direct=1 --iodepth=32 --rw=randread \
        --bs=4k --time_based --runtime=5 --output-format=json --output=/tmp/fio.json || return 1
    figure=$(jq -r '.jobs[0].read | "\(.iops | round) I/O/s, mean \(.lat_ns.mean / 1000 | round) us"' /tmp/fio.json)
    echo "  $figure"
}

mkdir -p out
: >out/summary
memory='' disk='' nothing=''
step "the guest sees the drive" list
[ -n "$nothing" ] || exit 1
step "identify" identify
step "verified I/O, memory" verify_memory
step "verified I/O, file" verify_disk
step "ext4 on the file" filesystem
step "rate of the null namespace" rate
title "what the guest's kernel said of its drive"
dmesg | grep -E 'nvme nvme|nvme[0-9]+n' | tail -n 12
[ "$failures" = 0 ]
