//! Configuration space against a model that knows one byte at a time.

use proptest::collection::vec;
use proptest::prelude::*;
use vfio_user::pci::config::{CONFIG_SIZE, ConfigSpace};

use crate::config::profile;

/// Every byte on its own: what it is at reset, and which bits a write sticks to, learnt by
/// writing zeros and ones to that byte alone in a fresh space.
struct Model {
    bytes: Vec<u8>,
    writable: Vec<u8>,
}

/// Bytes whose value a write decides with a rule of its own: the power state.
const POWER: usize = 0x44;

impl Model {
    fn learn() -> Self {
        let fresh = ConfigSpace::new(&profile()).unwrap();
        let bytes = fresh.image().0.to_vec();
        let writable = (0..CONFIG_SIZE)
            .map(|at| {
                let mut space = fresh.clone();
                space.write(at as u64, &[0xff]);
                let ones = space.image().0[at];
                space.write(at as u64, &[0]);
                ones ^ space.image().0[at]
            })
            .collect();
        Self { bytes, writable }
    }

    fn write(&mut self, offset: usize, data: &[u8]) {
        for (at, value) in (offset..CONFIG_SIZE).zip(data) {
            if at == POWER && matches!(value & 3, 1 | 2) {
                continue;
            }
            let mask = self.writable[at];
            self.bytes[at] = self.bytes[at] & !mask | value & mask;
        }
    }
}

#[test]
fn identity_and_capability_headers_cannot_be_written() {
    let model = Model::learn();
    for at in [0x00, 0x02, 0x08, 0x0a, 0x0e, 0x2c, 0x2e, 0x34, 0x3d, 0x40, 0x41, 0x50, 0x60, 0x100]
    {
        assert_eq!(model.writable[at], 0, "{at:#x}");
    }
    assert_eq!(model.writable[0x11], 0xc0, "BAR0 of 16 KiB");
}

proptest! {
    #[test]
    fn any_writes_leave_what_the_model_says(
        writes in vec((0..5000_usize, vec(any::<u8>(), 0..40)), 0..40),
        reads in vec((0..5000_usize, 0..100_usize), 1..10),
    ) {
        let mut space = ConfigSpace::new(&profile()).unwrap();
        let mut model = Model::learn();
        for (offset, data) in &writes {
            space.write(*offset as u64, data);
            model.write(*offset, data);
        }
        prop_assert_eq!(&space.image().0[..], &model.bytes[..]);
        for (offset, len) in reads {
            let mut data = vec![0x5a; len];
            space.read(offset as u64, &mut data);
            let expected: Vec<u8> = (offset..offset + len)
                .map(|at| model.bytes.get(at).copied().unwrap_or(0xff))
                .collect();
            prop_assert_eq!(data, expected);
        }
    }

    #[test]
    fn a_write_in_pieces_is_the_write(offset in 0..4096_u64, data in vec(any::<u8>(), 1..9)) {
        let mut whole = ConfigSpace::new(&profile()).unwrap();
        let mut pieces = whole.clone();
        // The two bits of the power state are one field in one byte, so pieces agree.
        whole.write(offset, &data);
        for (at, byte) in data.iter().enumerate() {
            pieces.write(offset + at as u64, &[*byte]);
        }
        prop_assert_eq!(whole.image(), pieces.image());
    }

    #[test]
    fn offsets_past_everything_do_nothing(offset in 4096..u64::MAX, data in vec(any::<u8>(), 0..9)) {
        let mut space = ConfigSpace::new(&profile()).unwrap();
        let before = space.image();
        prop_assert!(space.write(offset, &data).is_empty());
        prop_assert_eq!(space.image(), before);
        let mut read = [0; 8];
        space.read(offset, &mut read);
        prop_assert_eq!(read, [0xff; 8]);
    }
}
