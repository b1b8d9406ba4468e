//! Data: verified I/O, filesystems, formats, discards.

use vireo_tests::guest::Guest;
use vireo_tests::target::Target;

use crate::{FUNCTIONS, two_devices};

#[test]
fn data_survives_io_filesystems_formats_and_resets() {
    let target = Target::start(&two_devices("", ""));
    let script = r#"
within 60 namespace 1 && within 60 namespace 2
memory=$(namespace 1) disk=$(namespace 2)

verify "$memory" 24M
verify "$disk" 24M
# Small blocks, odd alignments, flushes and forced unit access in between.
verify "$disk" 4M --bsrange=512-8k --fsync=16

# What was written is there after the caches are dropped, an unmount and a reset of the controller.
mkfs.ext4 -q -F "$disk"
mount "$disk" /mnt
head -c 20M /dev/urandom >/mnt/data
sum=$(sha256sum </mnt/data)
sync
nvme reset /dev/nvme0
within 60 sh -c 'dd if=/mnt/data of=/dev/null bs=1M count=1 iflag=direct status=none'
echo 3 >/proc/sys/vm/drop_caches
expect "$sum" "$(sha256sum </mnt/data)"
fstrim /mnt
umount /mnt
e2fsck -f -n "$disk"
mount "$disk" /mnt
expect "$sum" "$(sha256sum </mnt/data)"
umount /mnt

# A deallocated range and a zeroed range read as zeroes, and nothing else does.
dd if=/dev/urandom of=/tmp/random bs=1M count=8 status=none
for device in "$memory" "$disk"; do
    dd if=/tmp/random of="$device" bs=1M oflag=direct status=none
    blkdiscard -o 1M -l 2M "$device"
    blkdiscard -z -o 4M -l 2M "$device"
    echo 3 >/proc/sys/vm/drop_caches
    dd if="$device" of=/tmp/back bs=1M count=8 iflag=direct status=none
    for megabyte in 0 3 6 7; do
        cmp <(dd if=/tmp/random bs=1M skip=$megabyte count=1 status=none) <(dd if=/tmp/back bs=1M skip=$megabyte count=1 status=none)
    done
    for megabyte in 1 2 4 5; do
        cmp -n 1048576 /dev/zero <(dd if=/tmp/back bs=1M skip=$megabyte count=1 status=none)
    done
done

# The other block size, and back. A format leaves zeroes; the size in bytes stays.
size=$(blockdev --getsize64 "$memory")
nvme format /dev/nvme0 --namespace-id=1 --lbaf=1 --ses=1 --force
within 60 sh -c "[ \$(blockdev --getss $memory) = 4096 ]"
expect "$size" "$(blockdev --getsize64 "$memory")"
cmp -n 8388608 /dev/zero "$memory"
verify "$memory" 16M
nvme format /dev/nvme0 --namespace-id=1 --lbaf=0 --force
within 60 sh -c "[ \$(blockdev --getss $memory) = 512 ]"
verify "$memory" 8M --bsrange=512-16k

# The driver lets go of the drive and takes it again.
address=$(basename "$(readlink -f /sys/class/nvme/nvme0/device)")
for round in 1 2; do
    echo "$address" >/sys/bus/pci/drivers/nvme/unbind
    within 60 sh -c '! ls /sys/class/nvme/nvme* >/dev/null 2>&1'
    echo "$address" >/sys/bus/pci/drivers/nvme/bind
    within 60 sh -c 'ls /sys/class/nvme/nvme*/nvme*n* >/dev/null 2>&1'
done
controller=$(basename /sys/class/nvme/nvme*)
within 60 namespace 2 "$controller"
cmp <(dd if=/tmp/random bs=1M count=1 status=none) <(dd if="$(namespace 2 "$controller")" bs=1M count=1 iflag=direct status=none)
! dmesg | grep -iE 'nvme nvme[0-9]+: .*(timeout|abort|failed|unusual)'
"#;
    let script = format!("{FUNCTIONS}{script}");
    Guest::new(&script).drive(target.endpoint("vm0")).seconds(400).run();
    assert!(target.stop().success());
}
