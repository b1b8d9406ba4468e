//! The drive in other hands: the kernel's driver lets go of it, and the host side of Vireo drives it over VFIO.

use vireo_tests::guest::Guest;
use vireo_tests::target::{Target, one_memory_namespace, program};

/// What `make bench-guest` runs for longer: it checks what it does, see there.
const SCRIPT: &str = include_str!("../../../services/vireo/tests/guest/drive.sh");

#[test]
fn vireo_perf_and_identify_drive_the_guest_s_drive_over_vfio() {
    let target = Target::start(&one_memory_namespace(&["vm0"]));
    let script = format!("seconds=1\n{SCRIPT}");
    let output = Guest::new(&script)
        .iommu()
        .drive(target.endpoint("vm0"))
        .file(program("vireo"))
        .seconds(300)
        .run();
    for word in ["serial number             TEST0001", "kernel, fio", "vireo perf, polled"] {
        assert!(output.contains(word), "{word} in\n{output}");
    }
    assert!(target.stop().success());
}
