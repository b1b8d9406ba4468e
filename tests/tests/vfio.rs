//! A controller that nobody here wrote: QEMU's own, in a guest behind an emulated IOMMU, driven over VFIO PCIe.

use std::fs::File;

use vireo_tests::guest::Guest;
use vireo_tests::target::program;

/// Bytes of each drive: more than `exercise` asks for.
const SIZE: u64 = 64 << 20;

#[test]
fn drives_of_qemu_are_driven_over_vfio_alone_and_at_once_and_may_be_taken_away() {
    let scripts = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/nvme-driver/tests/guest");
    let directory = tempfile::tempdir().expect("tempdir");
    let mut guest = Guest::new("sh ./vfio.sh").iommu();
    for id in ["first", "second"] {
        let path = directory.path().join(id);
        File::create(&path).and_then(|file| file.set_len(SIZE)).expect("a sparse file");
        let backing = format!("file={},format=raw,if=none,id={id}", path.display());
        guest =
            guest.qemu(&["-drive", &backing, "-device", &format!("nvme,serial={id},drive={id}")]);
    }
    let output = guest
        .file(format!("{scripts}/vfio.sh"))
        .file(program("examples/exercise"))
        .memory(1536)
        .seconds(400)
        .run();
    let count = |word: &str| output.matches(word).count();
    // Each of the two by itself, polled and by interrupts, with two threads; those at once have logs of their own.
    for (word, times) in [
        ("is bound to nvme, not to vfio-pci", 2),
        ("is bound to no driver, not to vfio-pci", 2),
        ("no permission to open /dev/vfio/", 2),
        ("no pci device 00ff:00:00.0", 1),
        ("model \"QEMU NVMe Ctrl\"", 4),
        ("bytes (interrupts: false)", 4),
        ("bytes (interrupts: true)", 4),
        ("reset under outstanding requests, and all of them ended", 4),
        ("shut down", 4),
        ("all is well", 2),
        ("all of them at once", 1),
        ("is in use", 1),
        ("removed while it is used", 1),
    ] {
        assert_eq!(count(word), times, "{word:?} in\n{output}");
    }
}
