//! A whole target in one thread, driven from a seed.

use nvme_spec::{Lba, Nsid};
use vireo_tests::simulated::{Fate, boot};

#[test]
fn what_is_written_is_read() {
    let (_world, mut host) = boot(1, Fate::default());
    host.write(Nsid(1), Lba(8), &[0x5A; 4096], 512).unwrap();
    assert_eq!(host.read(Nsid(1), Lba(8), 8, 512).unwrap(), [0x5A; 4096]);
}
