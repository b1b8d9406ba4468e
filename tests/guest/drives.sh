#!/bin/bash
# Runs in the test guest (tests/guest/run.sh --iommu) as its root, with Vireo's programs beside it: `vireo up` with the
# guest's emulated NVMe drive as its block device, over VFIO, and `vireo perf` as the client of that. The worker has a queue
# pair of the drive. Data is verified before and after the worker and the backend were killed; then the drive is taken away
# while it is used.
set -euo pipefail
cd /run/vireo
work=/tmp/target
mkdir -p $work

for device in /sys/bus/pci/devices/*; do
    [ "$(cat "$device/class")" = 0x010802 ] || continue
    address=${device##*/}
done
echo "$address" >"/sys/bus/pci/devices/$address/driver/unbind"
modprobe vfio-pci
echo vfio-pci >"/sys/bus/pci/devices/$address/driver_override"
echo "$address" >/sys/bus/pci/drivers_probe

cat >$work/vireo.toml <<CONFIGURATION
runtime_dir = "$work/run"
state_dir = "$work/state"
[[worker]]
name = "w0"
[[backend]]
name = "b0"
[[frontend]]
name = "f0"
[[bdev]]
name = "nv0"
driver = "nvme"
target = "pcie:$address"
[[subsystem]]
name = "s0"
[[subsystem.namespace]]
nsid = 1
bdev = "nv0"
[[endpoint]]
name = "vm0"
subsystem = "s0"
CONFIGURATION
mkdir -p $work/run $work/state
./vireo up --config $work/vireo.toml >$work/log 2>&1 &
up=$!
trap 'tail -n 40 $work/log' EXIT
within 60 grep -q '^ready' $work/log

# verify NAME OPTION...: load whose every block is checked.
verify() {
    local name=$1
    shift
    timeout 40 ./vireo perf "vfio-user:$work/run/vm0" --warm-up 0s --io-timeout 20s --size 8MiB -o json "$@" >$work/perf.json
    jq -e '.runs[0].errors == 0 and (.runs[0].verify | .good > 0 and .lost + .torn + .misplaced + .corrupt == 0)' \
        $work/perf.json >/dev/null || { cat $work/perf.json; exit 1; }
    echo "$name: $(jq -r '.runs[0].verify.good' $work/perf.json) blocks verified"
}
verify 'small blocks' --pattern randwrite --verify crc32c --depth 16 --time 2s
verify 'large blocks' --pattern randrw --verify pattern --block-size 256KiB --depth 4 --time 2s
if grep -q 'data goes through buffers' $work/log; then exit 1; fi

leased() { timeout 30 ./vireo status --config $work/vireo.toml -o json | grep -q 'lease of nv0'; }
(timeout 60 ./vireo perf "vfio-user:$work/run/vm0" --depth 8 --io-timeout 20s --time 8s >$work/leased 2>&1 || true) &
load=$!
within 60 leased || { echo 'the worker has no queue pair of the drive'; exit 1; }
timeout 40 tail --pid=$load -f /dev/null

served() { timeout 30 ./vireo status --config $work/vireo.toml >/dev/null; }
# successor NAME KIND: kills a process as a crash would, while it is used, and waits for another one.
successor() {
    local before now
    (timeout 60 ./vireo perf "vfio-user:$work/run/vm0" --depth 8 --io-timeout 20s --time 4s >$work/killed 2>&1 || true) &
    load=$!
    sleep 2
    before=$(pgrep -f "vireo-$2.*--name $1")
    kill -KILL "$before"
    another() { now=$(pgrep -f "vireo-$2.*--name $1") && [ "$now" != "$before" ]; }
    within 60 another "$@"
    timeout 60 tail --pid=$load -f /dev/null || { echo "a client hangs after $1 was killed"; exit 1; }
    within 60 served
}
successor w0 worker
verify 'after the worker was killed' --pattern randwrite --verify crc32c --depth 8 --time 2s
successor b0 backend
verify 'after the backend was killed' --pattern randwrite --verify crc32c --depth 8 --time 2s

echo 'removed while it is used'
(timeout 60 ./vireo perf "vfio-user:$work/run/vm0" --depth 8 --io-timeout 20s --time 30s >$work/removed 2>&1 || true) &
load=$!
sleep 2
timeout 20 bash -c "echo 1 >/sys/bus/pci/devices/$address/remove" || { echo 'the kernel waits for the drive'; exit 1; }
[ ! -e "/sys/bus/pci/devices/$address" ]
within 60 grep -q 'drive lost' $work/log
timeout 40 tail --pid=$load -f /dev/null || { echo 'a client of a lost drive hangs'; exit 1; }

kill -TERM $up
timeout 20 tail --pid=$up -f /dev/null || { echo 'vireo up does not stop'; exit 1; }
trap - EXIT
if dmesg | grep -E 'DMAR:.*fault'; then exit 1; fi
