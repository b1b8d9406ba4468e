use proptest::collection::vec;
use proptest::prelude::*;
use vfio_user::pci::msix::{ENTRY_SIZE, Msix};

fn entry(msix: &Msix, vector: u64) -> [u32; 4] {
    let mut data = [0; ENTRY_SIZE];
    msix.read_table(vector * ENTRY_SIZE as u64, &mut data);
    std::array::from_fn(|at| u32::from_le_bytes(data[at * 4..at * 4 + 4].try_into().unwrap()))
}

#[test]
fn vectors_are_masked_and_not_pending_after_reset() {
    let mut msix = Msix::new(64);
    msix.write_table(0, &[0; 64]);
    msix.set_pending(3, true);
    msix.reset();
    for vector in 0..64 {
        assert_eq!(entry(&msix, u64::from(vector)), [0, 0, 0, 1]);
        assert!(msix.masked(vector) && !msix.pending(vector));
    }
}

#[test]
fn entries_are_kept_and_reserved_bits_are_not() {
    let mut msix = Msix::new(64);
    let message: Vec<u8> = [0xfee0_1003_u32, 1, 0x4041, 0xffff_fffe]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    assert_eq!(msix.write_table(16, &message), [1]);
    assert_eq!(entry(&msix, 1), [0xfee0_1000, 1, 0x4041, 0]);
    assert_eq!(entry(&msix, 0), [0, 0, 0, 1]);
}

#[test]
fn unmasking_is_told_once() {
    let mut msix = Msix::new(4);
    assert_eq!(msix.write_table(0x2c, &[0, 0, 0, 0]), [2]);
    assert!(msix.write_table(0x2c, &[0, 0, 0, 0]).is_empty());
    assert!(msix.write_table(0x2c, &[1, 0, 0, 0]).is_empty());
    assert!(msix.masked(2));
    assert_eq!(msix.write_table(0, &[0; 64]), [0, 1, 2, 3]);
}

#[test]
fn pending_bits_are_read_by_quadword_and_set_by_the_owner_only() {
    let mut msix = Msix::new(65);
    for vector in [0, 63, 64] {
        msix.set_pending(vector, true);
    }
    msix.set_pending(65, true);
    let mut data = [0xff; 24];
    msix.read_pending(0, &mut data);
    assert_eq!(data[..8], (1_u64 | 1 << 63).to_le_bytes());
    assert_eq!(data[8..16], 1_u64.to_le_bytes());
    assert_eq!(data[16..], [0; 8]);
    msix.set_pending(63, false);
    assert!(!msix.pending(63) && msix.pending(64) && !msix.pending(65));
}

proptest! {
    #[test]
    fn any_access_stays_within_the_table(
        accesses in vec((any::<u64>(), 0..5000_u64, vec(any::<u8>(), 0..64)), 0..30),
        vectors in 1..257_u16,
    ) {
        let mut msix = Msix::new(vectors);
        for (far, near, data) in accesses {
            for offset in [far, near] {
                let unmasked = msix.write_table(offset, &data);
                prop_assert!(unmasked.iter().all(|&vector| vector < vectors));
                let mut read = vec![0; data.len()];
                msix.read_table(offset, &mut read);
                msix.read_pending(offset, &mut read);
                prop_assert!(read.iter().all(|&byte| byte == 0));
            }
        }
    }
}
