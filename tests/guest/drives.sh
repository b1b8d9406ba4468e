#!/bin/bash
# Runs in the test guest (tests/guest/run.sh --iommu) as its root, with Vireo's programs beside it: `vireo up` with the
# guest's emulated NVMe drive as its block device, over VFIO, and `vireo perf` as the client of that. The worker has a queue
# pair of the drive. Data is verified before and after the worker and the backend were killed: a backend's successor takes the
# drive over from the keeper's store, also from one that was killed while it did so. Then the drive is given back to the kernel
# by configuration, with a backend that runs and without, and at last taken away while it is used.
set -euo pipefail
cd /run/vireo
work=/tmp/target
mkdir -p $work

for device in /sys/bus/pci/devices/*; do
    [ "$(cat "$device/class")" = 0x010802 ] || continue
    address=${device##*/}
done
device=/sys/bus/pci/devices/$address
# bind DRIVER: gives the drive to another driver. The kernel waits until nobody has it open.
bind() {
    timeout 30 bash -c "echo $address >$device/driver/unbind" || { echo "the kernel waits for the drive ($1)"; exit 1; }
    echo "$1" >"$device/driver_override"
    echo "$address" >/sys/bus/pci/drivers_probe
}
disk() { compgen -G "$device/nvme/nvme*/nvme*n1" >/dev/null; }
modprobe vfio-pci
bind vfio-pci

timeout 120 ./heir "pcie:$address" || { echo 'a drive is not taken over'; exit 1; }

# The backend, as `vireo up` starts it. While there is a file `hold` it waits.
mv vireo-backend vireo-backend.program
cat >vireo-backend <<'WRAPPER'
#!/bin/bash
while [ -e /tmp/target/hold ]; do sleep 0.1; done
exec /run/vireo/vireo-backend.program "$@"
WRAPPER
chmod +x vireo-backend

cat >$work/drive.toml <<CONFIGURATION
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
# The same without the drive.
sed '/^\[\[bdev\]\]/,$d' $work/drive.toml >$work/none.toml
cp $work/drive.toml $work/vireo.toml
mkdir -p $work/run $work/state
VIREO_LOG=info ./vireo up --config $work/vireo.toml >$work/log 2>&1 &
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

leased() { timeout 30 ./vireo status --config $work/vireo.toml -o json | grep 'lease of nv0' >/dev/null; }
(timeout 60 ./vireo perf "vfio-user:$work/run/vm0" --depth 8 --io-timeout 20s --time 8s >$work/leased 2>&1 || true) &
load=$!
within 60 leased || { echo 'the worker has no queue pair of the drive'; exit 1; }
timeout 40 tail --pid=$load -f /dev/null

served() { timeout 30 ./vireo status --config $work/vireo.toml >/dev/null; }
process() { pgrep -f "vireo-$2.*--name $1"; }
another() { now=$(process "$@") && [ "$now" != "$before" ]; }
# successor NAME KIND [TIMES]: kills a process as a crash would, while it is used, and waits for another one; kills that as
# it starts, if it is to be so often.
successor() {
    local before now times=${3:-1}
    rm -f $work/unharmed
    (timeout 60 ./vireo perf "vfio-user:$work/run/vm0" --depth 8 --io-timeout 20s --time 4s >$work/killed 2>&1 && touch $work/unharmed) &
    load=$!
    sleep 2
    while [ "$times" -gt 0 ]; do
        before=$(process "$1" "$2")
        kill -KILL "$before"
        within 60 another "$1" "$2"
        times=$((times - 1))
        # Each a little earlier than the last.
        [ "$times" = 0 ] || sleep "0.$times"
    done
    timeout 60 tail --pid=$load -f /dev/null || { echo "a client hangs after $1 was killed"; exit 1; }
    within 60 served
}
successor w0 worker
verify 'after the worker was killed' --pattern randwrite --verify crc32c --depth 8 --time 2s
# unharmed: nothing failed of what was outstanding then.
unharmed() { [ -e $work/unharmed ] || { cat $work/killed; echo 'a client noticed that the backend was killed'; exit 1; }; }
# taken_over COUNT: by now so many successors have taken the drive over, and none had to open it anew.
said() { [ "$(grep -c "$2" $work/log)" -ge "$1" ]; }
taken_over() {
    within 60 said "$1" 'drive taken over from a predecessor' || { echo "the drive was not taken over $1 times"; exit 1; }
    if grep -E 'is of no use|is not kept' $work/log; then exit 1; fi
}
successor b0 backend
unharmed
taken_over 1
verify 'after the backend was killed' --pattern randwrite --verify crc32c --depth 8 --time 2s
(timeout 60 ./vireo perf "vfio-user:$work/run/vm0" --depth 8 --io-timeout 20s --time 8s >$work/leased 2>&1 || true) &
load=$!
within 60 leased || { echo 'the worker has no queue pair of the drive that was taken over'; exit 1; }
timeout 60 tail --pid=$load -f /dev/null

successor b0 backend 2
taken_over 2
successor b0 backend 4
taken_over 3
verify 'after successors were killed' --pattern randwrite --verify crc32c --depth 8 --time 2s

# configure NAME: has another configuration taken over.
reloaded() { timeout 60 ./vireo reload --config $work/vireo.toml; }
configure() {
    cp "$work/$1.toml" $work/vireo.toml
    within 60 reloaded
}
configure none
bind nvme
within 60 disk
bind vfio-pci
configure drive
verify 'after the kernel had it' --pattern randwrite --verify crc32c --depth 8 --time 2s

# While no backend runs. Nobody says then that all is done.
touch $work/hold
kill -KILL "$(process b0 backend)"
cp $work/none.toml $work/vireo.toml
reloaded || true
rm $work/hold
within 60 said 1 'drive given back to the kernel' || { echo 'a drive that nobody wants is kept'; exit 1; }
bind nvme
within 60 disk
bind vfio-pci
configure drive
verify 'after it was given back' --pattern randwrite --verify crc32c --depth 8 --time 2s

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
