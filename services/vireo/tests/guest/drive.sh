#!/bin/bash
# Runs in the test guest (tests/guest/run.sh --iommu --drive DIR) as its root, with the `vireo` program beside it.
#
# The same drive, Vireo's controller, driven in two ways one after the other: by the kernel's driver with fio, then, bound
# to vfio-pci, by `vireo perf` from user space; `vireo identify` describes it in between. Prints both figures side by side.
# `seconds` says how long each load runs. Fails if a command fails, data is damaged, or the drive does not come back to the
# kernel in the end.
set -euo pipefail
seconds=${seconds:-5}
vireo=/run/vireo/vireo
rows=/tmp/rows
: >"$rows"

# row DEPTH DRIVER IOPS MEAN_NS P99_NS
row() { printf '%s\t%s\t%.0f\t%.1f\t%.1f\n' "$1" "$2" "$3" "$(jq -n "$4 / 1000")" "$(jq -n "$5 / 1000")" >>"$rows"; }

# kernel DEPTH: random reads of 4 KiB through the kernel.
kernel() {
    fio --name=load --filename="$drive" --ioengine=libaio --direct=1 --rw=randread --bs=4k --iodepth="$1" \
        --time_based --runtime="$seconds" --ramp_time=1 --percentile_list=99 --eta=never --output-format=json |
        sed -n '/^{/,$p' >/tmp/fio.json
    # Two figures and a percentile, one word each.
    # shellcheck disable=SC2046
    row "$1" 'kernel, fio' $(jq -r '.jobs[0].read | .iops, .lat_ns.mean, .clat_ns.percentile["99.000000"]' /tmp/fio.json)
}

# user DEPTH COMPLETIONS: the same by vireo perf.
user() {
    "$vireo" perf "$target" --pattern randread --block-size 4KiB --depth "$1" --time "${seconds}s" --warm-up 1s \
        --completions "$2" -o json >/tmp/perf.json
    jq -e '.runs[0].errors == 0 and .runs[0].all.ios > 0' /tmp/perf.json >/dev/null
    # shellcheck disable=SC2046
    row "$1" "vireo perf, $2" $(jq -r '.runs[0].all | .iops, .latency_ns.mean, .latency_ns.p99' /tmp/perf.json)
}

# bind DRIVER: gives the function to that driver.
bind() {
    echo "$address" >"/sys/bus/pci/devices/$address/driver/unbind"
    echo "$1" >"/sys/bus/pci/devices/$address/driver_override"
    echo "$address" >/sys/bus/pci/drivers_probe
}

within 60 namespace 1 >/dev/null
drive=$(namespace 1)
address=$(basename "$(readlink -f /sys/class/nvme/nvme0/device)")
target=pcie:$address
serial=$(tr -d ' ' </sys/class/nvme/nvme0/serial)
sectors=$(cat "/sys/block/${drive#/dev/}/size")
kernel 1
kernel 32

# What a person sees who forgot to bind it.
for command in identify perf; do
    status=0
    "$vireo" "$command" "$target" 2>/tmp/line || status=$?
    if [ "$status" != 1 ] || [ "$(wc -l </tmp/line)" != 1 ] || ! grep -q 'bound to nvme, not to vfio-pci' /tmp/line; then
        echo "vireo $command: status $status: $(cat /tmp/line)"
        exit 1
    fi
done

modprobe vfio-pci
bind vfio-pci
"$vireo" identify "$target" -o json >/tmp/identify.json
jq -e --arg serial "$serial" --argjson bytes $((sectors * 512)) \
    '.controller.serial_number == $serial and .namespaces[0].size_bytes == $bytes and .limits.interrupt_vectors > 0' \
    /tmp/identify.json >/dev/null
"$vireo" identify "$target" | sed -n '1,/^$/p'
"$vireo" perf "$target" --pattern randwrite --verify crc32c --depth 16 --queues 2 --size 16MiB --time "${seconds}s" \
    -o json >/tmp/verify.json
jq -e '.runs[0].verify | .good > 0 and .lost + .torn + .misplaced + .corrupt == 0' /tmp/verify.json >/dev/null
"$vireo" perf "$target" --pattern randrw --verify pattern --block-size 64KiB --depth 8 --size 32MiB --time "${seconds}s" \
    --completions interrupt >/tmp/verify.txt || { cat /tmp/verify.txt; exit 1; }
user 1 polled
user 32 polled
user 1 interrupt
user 32 interrupt

# The kernel takes it back, and reads what vireo perf wrote.
bind nvme
within 60 namespace 1 >/dev/null
drive=$(namespace 1)
[ "$(dd if="$drive" bs=4 count=1 iflag=fullblock status=none)" = VpF1 ]
if dmesg | grep -iE 'DMAR:.*fault|nvme nvme[0-9]+: .*(timeout|abort|failed)'; then exit 1; fi

printf '\nrandom reads of 4 KiB from %s, %s s each\n' "$serial" "$seconds"
printf '%6s  %-24s %10s %12s %12s\n' depth driver IOPS 'mean us' 'p99 us'
sort -s -n -k 1,1 "$rows" | while IFS=$'\t' read -r depth driver iops mean p99; do
    printf '%6s  %-24s %10s %12s %12s\n' "$depth" "$driver" "$iops" "$mean" "$p99"
done
