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
    let programs = ["vireo", "vireo-backend", "vireo-worker", "vireo-frontend", "vireo-manager"];
    let guest = Guest::new(SCRIPT).iommu().cpus(2).seconds(400).emulated_drive(&image);
    let guest = programs.into_iter().fold(guest, |guest, name| guest.file(program(name)));
    let output = guest.run();
    let killed = ["after the worker was killed: ", "after the backend was killed: "];
    for word in ["small blocks: ", "large blocks: "].into_iter().chain(killed) {
        assert!(output.contains(word), "{word} in\n{output}");
    }
}
