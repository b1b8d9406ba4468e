//! Both ways to ring, many queues, and a guest's own IOMMU.

use vireo_tests::guest::Guest;
use vireo_tests::target::Target;

use crate::{FUNCTIONS, two_devices};

/// Verified I/O on several queues at once, and resets in between.
const MANY_QUEUES: &str = r#"
within 60 namespace 1 && within 60 namespace 2
queues=$(ls -d /sys/block/"$(basename "$(namespace 1)")"/mq/* | wc -l)
expect "$(nproc)" "$queues"
verify "$(namespace 1)" 6M --numjobs=4 --offset_increment=16M --group_reporting --cpus_allowed=0-3 --cpus_allowed_policy=split
verify "$(namespace 2)" 6M --numjobs=4 --offset_increment=32M --group_reporting --cpus_allowed=0-3 --cpus_allowed_policy=split
nvme reset /dev/nvme0
verify "$(namespace 1)" 4M --numjobs=4 --offset_increment=16M --group_reporting --iodepth=64
# An hour's idleness in short: the worker sleeps, and wakes.
for pause in 0.01 0.1 1 2; do
    sleep $pause
    dd if="$(namespace 1)" of=/dev/null bs=4k count=1 iflag=direct status=none
done
! dmesg | grep -iE 'nvme nvme[0-9]+: .*(timeout|abort|failed|unusual)'
"#;

/// Four processors' queues, with doorbells of that kind.
fn many_queues(doorbells: &str) {
    let target = Target::start(&two_devices(&format!("doorbells = \"{doorbells}\"\n"), ""));
    let script = format!("{FUNCTIONS}{MANY_QUEUES}");
    Guest::new(&script)
        .drive(target.endpoint("vm0"))
        .cpus(4)
        .kernel("nvme_core.io_timeout=10")
        .run();
    assert!(target.stop().success());
}

#[test]
fn many_queues_with_mapped_doorbells() {
    many_queues("mapped");
}

#[test]
fn many_queues_with_shadow_doorbells() {
    many_queues("shadow");
}

#[test]
fn a_guest_behind_its_own_iommu_maps_page_by_page() {
    let target = Target::start(&two_devices("", ""));
    let script = r#"
within 60 namespace 1
[ -e /sys/class/nvme/nvme0/device/iommu_group ]
verify "$(namespace 1)" 4M --iodepth=4
verify "$(namespace 2)" 2M --iodepth=4
nvme reset /dev/nvme0
verify "$(namespace 1)" 2M --iodepth=4
! dmesg | grep -iE 'DMAR.*fault|nvme nvme[0-9]+: .*(timeout|abort|failed)'
"#;
    let script = format!("{FUNCTIONS}{script}");
    Guest::new(&script).drive(target.endpoint("vm0")).iommu().run();
    assert!(target.stop().success());
}
