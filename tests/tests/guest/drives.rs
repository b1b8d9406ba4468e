//! A target within a guest, on a drive that we did not write: QEMU's emulated NVMe behind the guest's IOMMU, over VFIO.

use std::fs::File;

use vireo_tests::guest::Guest;
use vireo_tests::target::program;

/// What is done in the guest; see there.
const SCRIPT: &str = include_str!("../../guest/drives.sh");

#[test]
fn a_target_in_a_guest_serves_an_emulated_drive_over_vfio() {
    let directory = tempfile::tempdir().expect("tempdir");
    let image = directory.path().join("drive.img");
    File::create(&image).and_then(|file| file.set_len(64 << 20)).expect("make an image");
    let services = ["vireo-backend", "vireo-worker", "vireo-frontend", "vireo-manager"];
    let programs = ["vireo", "examples/heir"].into_iter().chain(services);
    let backing = format!("file={},format=raw,if=none,id=drive,discard=unmap", image.display());
    // Two queue pairs, the backend's own and a worker's: a successor has none to spare.
    let drive = "nvme,serial=EMULATED,drive=drive,max_ioqpairs=2";
    let guest = Guest::new(SCRIPT).iommu().cpus(2).seconds(700);
    let guest = guest.qemu(&["-drive", &backing, "-device", drive]);
    let guest = programs.fold(guest, |guest, name| guest.file(program(name)));
    let output = guest.run();
    let alone = ["taken over with nothing lost", "taken over with nvdrive lost"];
    let doomed =
        ["controller that was enabled", "that was disabled", "that was set up", "given up"];
    let before = ["small blocks: ", "large blocks: ", "after the worker was killed: "];
    let killed = ["after the backend was killed: ", "after successors were killed: "];
    let back = ["after the kernel had it: ", "after it was given back: "];
    for word in alone.into_iter().chain(doomed).chain(before).chain(killed).chain(back) {
        assert!(output.contains(word), "{word} in\n{output}");
    }
}
