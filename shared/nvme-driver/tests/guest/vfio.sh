#!/bin/sh
# Runs in the test guest (tests/guest/run.sh --iommu) with the `exercise` example beside it, as the guest's root.
#
# Drives every NVMe controller of the guest over VFIO PCIe: first the lines that a user sees before a drive is bound
# or may be opened, then verified I/O with and without interrupts, resets, all drives at once, a drive that is in use,
# and one that is removed while it is used.
set -eu
cd /run/vireo

# fails PATTERN COMMAND...: the command ends within 5 s with status 1 and one line that matches.
fails() {
    pattern=$1 && shift
    status=0
    line=$(timeout 5 "$@" 2>&1 >/dev/null) || status=$?
    if [ "$status" != 1 ] || [ "$(echo "$line" | wc -l)" != 1 ] || ! echo "$line" | grep -q "$pattern"; then
        echo "status $status instead of one line with '$pattern': $line"
        exit 1
    fi
    echo "$line"
}

modprobe vfio-pci
drives=''
for device in /sys/bus/pci/devices/*; do
    [ "$(cat "$device/class")" = 0x010802 ] || continue
    address=${device##*/}
    fails 'is bound to nvme, not to vfio-pci' ./exercise "pcie:$address"
    echo "$address" >"$device/driver/unbind"
    fails 'is bound to no driver, not to vfio-pci' ./exercise "pcie:$address"
    echo vfio-pci >"$device/driver_override"
    echo "$address" >/sys/bus/pci/drivers_probe
    fails 'no permission to open /dev/vfio/' setpriv --reuid 65534 --clear-groups ./exercise "pcie:$address"
    drives="$drives $address"
done
fails 'no pci device 00ff:00:00.0' ./exercise pcie:ff:00:00.0

for address in $drives; do
    timeout 200 ./exercise "pcie:$address" 1 2
done

echo 'all of them at once'
jobs=''
for address in $drives; do
    timeout 200 ./exercise "pcie:$address" 1 2 >"log.$address" 2>&1 &
    jobs="$jobs $!"
done
for job in $jobs; do
    wait "$job"
done

# One word a drive.
# shellcheck disable=SC2086
set -- $drives
timeout 200 ./exercise "pcie:$1" 1 2 >/dev/null &
job=$!
in_use() { find /proc/[0-9]*/fd -lname '/dev/vfio/[0-9]*' 2>/dev/null | grep -q .; }
until in_use; do sleep 0.05; done
fails 'is in use' ./exercise "pcie:$1"
wait "$job"

echo 'removed while it is used'
(while ./exercise "pcie:$1" 1 2 >/dev/null; do :; done) 2>removed &
job=$!
sleep 1
# Not between one use and the next: one has just begun.
while in_use; do sleep 0.01; done
until in_use; do sleep 0.01; done
timeout 10 sh -c "echo 1 >/sys/bus/pci/devices/$1/remove" || { echo 'the kernel waits for the device'; exit 1; }
timeout 10 tail --pid=$job -f /dev/null || { echo 'the driver hangs on a removed device'; exit 1; }
cat removed
grep -q . removed
