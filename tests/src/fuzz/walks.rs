//! PRP and SGL walks over memory of any content.

use std::cell::RefCell;
use std::sync::Arc;

use ipc::dma_table::{Access, DmaRow, DmaWriter, RegionId};
use ipc::guest_memory::{GuestMemory, Region, RegionPolicy};
use ipc::iova::Iova;
use ipc::layout::MAX_REGIONS;
use ipc::layout::controller::ControllerLayout;
use ipc::segment::Segment;
use nvme::prp::{self, PageShift, Prps};
use nvme::range_list::{BIT_BUCKET, RangeList, ranges_for};
use nvme::sgl;
use nvme_spec::sgl::SglDescriptor;

use super::input::Input;
use crate::host::memory::memfd;

/// Largest transfer of these walks.
const MAX_TRANSFER: u32 = 1 << 20;
/// Bytes of the readable and writable part.
const SIZE: u64 = 256 << 10;
/// Where it begins, and where a part begins that is read only, and one without memory.
const BASES: [u64; 3] = [0x10_0000, 0x20_0000, 0x30_0000];

thread_local! {
    static RIG: RefCell<Option<Rig>> = const { RefCell::new(None) };
}

struct Rig {
    memory: GuestMemory,
    region: Arc<Region>,
    list: RangeList,
}

/// Walks what the input says.
///
/// # Panics
/// If a promise is broken.
pub fn walks(data: &[u8]) {
    RIG.with_borrow_mut(|rig| rig.get_or_insert_with(Rig::new).walk(data));
}

impl Rig {
    fn new() -> Self {
        let segment = Arc::new(Segment::<ControllerLayout>::create("walks", 1).expect("segment"));
        let mut writer = DmaWriter::attach(Arc::clone(&segment)).expect("an empty table");
        let region = Region::map(memfd(SIZE), SIZE, &RegionPolicy::default()).expect("region");
        let id = RegionId(0);
        let rows = [
            (BASES[0], Some(id), Access::READ_WRITE),
            (BASES[1], Some(id), Access::READ),
            (BASES[2], None, Access::NONE),
        ];
        for (base, region, access) in rows {
            // Two rows that are neighbours here and apart in memory, and a hole after each pair.
            for (iova, offset) in [(base, SIZE / 2), (base + SIZE / 2, 0)] {
                let row = DmaRow { iova: Iova(iova), size: SIZE / 2, region, offset, access };
                writer.map(row).expect("map");
            }
        }
        let mut memory = GuestMemory::new(segment);
        memory.regions_mut().insert(id, Arc::clone(&region)).expect("insert");
        let list = RangeList::with_capacity(ranges_for(MAX_TRANSFER));
        Self { memory, region, list }
    }

    fn walk(&mut self, data: &[u8]) {
        let mut input = Input::new(data);
        let choice = input.u8();
        let access = if choice & 1 == 0 { Access::READ } else { Access::WRITE };
        let length = (input.number() % u64::from(MAX_TRANSFER)) as u32 + 1;
        let page = PageShift::clamped(12 + u32::from(input.u8() % 5));
        let (first, second) = (address(&mut input), address(&mut input));
        let descriptor = [input.u32().to_le_bytes(), [0, 0, 0, input.u8()]].concat();
        self.fill(input.rest());
        self.list.clear();
        let walked = if choice & 2 == 0 {
            let prps = Prps { first: nvme_spec::Iova(first), second: nvme_spec::Iova(second) };
            prp::walk(&self.memory, prps, length, page, access, &mut self.list)
        } else {
            let tail = u64::from_le_bytes(descriptor.try_into().expect("eight bytes"));
            let descriptor = SglDescriptor::from_words([first, tail]);
            sgl::walk(&self.memory, descriptor, length, access, &mut self.list)
        };
        let Ok(()) = walked else { return };
        let ranges = self.list.ranges();
        let held: u64 = ranges.iter().map(|range| u64::from(range.len)).sum();
        // A bit bucket of a write stands for nothing, so its list may be shorter only by what is checked there.
        assert_eq!(held, u64::from(length), "the list holds what the command moves");
        for &range in ranges.iter().filter(|range| range.region != BIT_BUCKET) {
            assert!((range.region.0 as usize) < MAX_REGIONS);
            let slice = self.memory.regions().host(range, access);
            assert!(slice.is_some(), "{range:?} is no memory");
        }
    }

    /// Memory that repeats the bytes, each eight of them made an address or left as they are.
    fn fill(&self, bytes: &[u8]) {
        let whole = self.region.whole();
        whole.fill(0);
        let mut input = Input::new(bytes);
        let mut at = 0;
        while !input.is_empty() && at + 16 <= SIZE as usize {
            let entry = match input.u8() % 4 {
                0 => [address(&mut input), address(&mut input)],
                1 => [input.u64(), input.u64()],
                // A descriptor.
                _ => {
                    let first = address(&mut input);
                    let tail = input.number() & 0xFFFF_FFFF;
                    [first, tail | u64::from(input.u8()) << 56]
                }
            };
            whole.store_u64(at, entry[0], std::sync::atomic::Ordering::Relaxed);
            whole.store_u64(at + 8, entry[1], std::sync::atomic::Ordering::Relaxed);
            at += 16;
            if input.u8().is_multiple_of(8) {
                at = (at / 4096 + 1) * 4096 - 16 * usize::from(input.u8() % 3);
            }
        }
    }
}

/// An address that is mostly near memory, and mostly aligned.
fn address(input: &mut Input<'_>) -> u64 {
    let choice = input.u8();
    if choice >= 0xF0 {
        return input.number();
    }
    let base = BASES[usize::from(choice % 3)];
    let offset = u64::from(input.u16()) * 16 % (SIZE + 8192);
    base + if choice & 0x40 == 0 { offset & !4095 } else { offset }
}
