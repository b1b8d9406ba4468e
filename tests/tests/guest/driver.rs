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
        .seconds(400)
        .run();
    for word in ["serial number             TEST0001", "kernel, fio", "vireo perf, polled"] {
        assert!(output.contains(word), "{word} in\n{output}");
    }
    assert!(target.stop().success());
}

/// A controller that was not written here, described over VFIO.
const FOREIGN: &str = r#"
within 60 namespace 1 >/dev/null
address=$(basename "$(readlink -f /sys/class/nvme/nvme0/device)")
modprobe vfio-pci
echo "$address" >"/sys/bus/pci/devices/$address/driver/unbind"
echo vfio-pci >"/sys/bus/pci/devices/$address/driver_override"
echo "$address" >/sys/bus/pci/drivers_probe
vireo=/run/vireo/vireo
"$vireo" identify "pcie:$address"
# It asks for nothing that this one does not have either.
"$vireo" identify "pcie:$address" -o json |
    jq -e '.controller.serial_number == "EMULATED" and .logs.errors == [] and .smart.error_log_entries == 0 and
        .namespaces[0].size_bytes == 67108864 and .supports.io_commands.reservations == false'
status=0
"$vireo" identify "pcie:$address" --namespace 9 2>/tmp/line || status=$?
[ "$status" = 1 ] && grep 'namespace 9 is not there; active: 1' /tmp/line
"#;

#[test]
fn vireo_identify_describes_a_controller_that_was_not_written_here() {
    let image = tempfile::NamedTempFile::new().expect("a file");
    image.as_file().set_len(64 << 20).expect("room");
    let guest = Guest::new(FOREIGN).iommu().emulated_drive(image.path());
    let output = guest.file(program("vireo")).run();
    for word in ["QEMU NVMe Ctrl", "64 MiB: 131072 blocks of 512 bytes", "not supported: "] {
        assert!(output.contains(word), "{word} in\n{output}");
    }
}
