//! Mapping, translating, and losing guest memory.

use super::{Access, DmaFaultKind, GuestMemory, MemRange, Region, RegionError, RegionId};
use super::{RegionKey, RegionPolicy};
use crate::dma_table::{DmaRow, DmaWriter};
use crate::iova::Iova;
use crate::layout::MAX_REGIONS;
use crate::layout::controller::ControllerLayout;
use crate::segment::Segment;
use nix::fcntl::{OFlag, open};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;
use nix::unistd::ftruncate;
use proptest::prelude::*;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

fn memfd(size: u64) -> OwnedFd {
    let fd = memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).unwrap();
    ftruncate(&fd, size as i64).unwrap();
    fd
}

fn read_only(fd: &OwnedFd) -> OwnedFd {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).unwrap()
}

fn map(fd: OwnedFd) -> Result<Arc<Region>, RegionError> {
    Region::map(fd, 1, &RegionPolicy::default())
}

/// A controller with regions 0 and 1 (read-only) of 4 MiB each.
fn memory() -> (DmaWriter, GuestMemory) {
    let segment = Arc::new(Segment::<ControllerLayout>::create("memory test", 1).unwrap());
    let writer = DmaWriter::attach(Arc::clone(&segment)).unwrap();
    let mut memory = GuestMemory::new(segment);
    memory.regions_mut().insert(RegionId(0), map(memfd(4 * MIB)).unwrap()).unwrap();
    memory.regions_mut().insert(RegionId(1), map(read_only(&memfd(4 * MIB))).unwrap()).unwrap();
    (writer, memory)
}

fn row(iova: u64, size: u64, region: u32, offset: u64) -> DmaRow {
    let access = Access::READ_WRITE;
    DmaRow { iova: Iova(iova), size, region: Some(RegionId(region)), offset, access }
}

fn pieces(memory: &GuestMemory, iova: u64, len: u32) -> Result<Vec<MemRange>, DmaFaultKind> {
    let mut ranges = Vec::new();
    let done = memory.translate(Iova(iova), len, Access::READ, &mut |range| ranges.push(range));
    done.map(|()| ranges).map_err(|fault| fault.kind)
}

#[test]
fn only_memory_of_a_sane_size_is_mapped() {
    let policy = RegionPolicy { max_size: MIB, any_file_system: false };
    let mapped = |fd: OwnedFd, needed| Region::map(fd, needed, &policy).map(|region| region.len());
    assert_eq!(mapped(memfd(MIB), MIB).unwrap(), MIB);
    assert!(matches!(mapped(memfd(MIB), MIB + 1), Err(RegionError::TooSmall { .. })));
    assert!(matches!(mapped(memfd(0), 0), Err(RegionError::TooSmall { .. })));
    assert!(matches!(mapped(memfd(MIB + 1), 1), Err(RegionError::TooLarge { .. })));
    assert!(matches!(map(memfd(1 << 60)), Err(RegionError::TooLarge { .. })));
    let device = std::fs::File::open("/dev/zero").unwrap();
    assert!(matches!(map(device.into()), Err(RegionError::FileSystem)));
    let other = std::fs::File::open("/proc/self/status").unwrap();
    assert!(matches!(map(other.into()), Err(RegionError::FileSystem)));
    let directory = std::fs::File::open("/dev/shm");
    assert!(directory.is_err() || map(directory.unwrap().into()).is_err());
    let fd = memfd(MIB);
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    for flags in [OFlag::O_WRONLY, OFlag::O_PATH] {
        let fd = open(path.as_str(), flags, Mode::empty()).unwrap();
        assert!(map(fd).is_err(), "{flags:?}");
    }
}

#[test]
fn same_memory_has_the_same_key_and_another_access_mode_another() {
    let fd = memfd(MIB);
    let again = fd.try_clone().unwrap();
    let weaker = read_only(&fd);
    let key = RegionKey::of(fd.as_fd()).unwrap();
    assert_eq!(RegionKey::of(again.as_fd()).unwrap(), key);
    assert_ne!(RegionKey::of(weaker.as_fd()).unwrap(), key);
    assert_ne!(RegionKey::of(memfd(MIB).as_fd()).unwrap(), key);
    let (_, mut memory) = memory();
    let regions = memory.regions_mut();
    assert_eq!(regions.find(&key), None);
    let id = regions.free_id().unwrap();
    assert_eq!(id, RegionId(2));
    regions.insert(id, map(fd).unwrap()).unwrap();
    assert_eq!(regions.find(&key), Some(id));
    let too_far = RegionId(MAX_REGIONS as u32);
    assert!(regions.insert(too_far, map(again).unwrap()).is_err());
    assert!(regions.get(too_far).is_none());
}

#[test]
fn no_field_of_a_range_is_believed() {
    let (_, memory) = memory();
    let regions = memory.regions();
    let range = |region, len, offset| MemRange { region: RegionId(region), len, offset };
    assert!(regions.host(range(0, 4096, 4 * MIB - 4096), Access::READ_WRITE).is_some());
    for (region, len, offset) in
        [(0, 4097, 4 * MIB - 4096), (0, 1, u64::MAX), (0, 1, 4 * MIB), (2, 1, 0), (u32::MAX, 1, 0)]
    {
        assert!(regions.host(range(region, len, offset), Access::READ).is_none());
    }
    assert!(regions.host(range(1, 4096, 0), Access::READ).is_some());
    assert!(regions.host(range(1, 4096, 0), Access::WRITE).is_none());
    let words = range(3, 0x89ab_cdef, 0x1234_5678_9abc_def0);
    assert_eq!(MemRange::from_words(words.to_words()), words);
}

#[test]
fn slices_copy_compare_and_load_within_their_bounds() {
    let (_, memory) = memory();
    let whole = memory.regions().get(RegionId(0)).unwrap().whole();
    let slice = whole.sub(4096, 16).unwrap();
    assert_eq!(slice.copy_from(&[7; 32]), 16);
    assert!(slice.compare(&[7; 16]) && !slice.compare(&[7; 15]) && !slice.compare(&[8; 16]));
    let mut bytes = [0; 20];
    assert_eq!(slice.copy_to(&mut bytes), 16);
    assert_eq!(bytes[14..], [7, 7, 0, 0, 0, 0]);
    assert!(slice.store_u32(12, 0x0403_0201, Ordering::Release));
    assert_eq!(slice.load_u32(12, Ordering::Acquire), Some(0x0403_0201));
    assert!(slice.store_u64(0, 5, Ordering::Relaxed));
    assert_eq!(slice.load_u64(0, Ordering::Relaxed), Some(5));
    for outside in [13, 16, usize::MAX] {
        assert_eq!(slice.load_u32(outside, Ordering::Relaxed), None);
        assert!(!slice.store_u32(outside, 1, Ordering::Relaxed));
    }
    assert_eq!(slice.load_u64(4, Ordering::Relaxed), None);
    assert!(
        slice.sub(16, 0).is_some()
            && slice.sub(16, 1).is_none()
            && slice.sub(1, usize::MAX).is_none()
    );
    // Overlapping halves.
    let all = whole.sub(0, 16).unwrap();
    all.copy_from(b"0123456789abcdef");
    whole.sub(4, 8).unwrap().copy_from_slice(&whole.sub(0, 8).unwrap());
    assert!(all.compare(b"012301234567cdef"));
    whole.sub(4, 4).unwrap().fill(b'x');
    assert!(whole.sub(4, 4).unwrap().compare(b"xxxx") && !all.compare_slice(&slice));
    let weaker = memory.regions().get(RegionId(1)).unwrap().whole();
    assert!(!weaker.is_writable() && !weaker.store_u32(0, 1, Ordering::Relaxed));
}

#[test]
fn translation_splits_at_rows_and_merges_neighbours() {
    let (mut writer, memory) = memory();
    let range = |region, len, offset| MemRange { region: RegionId(region), len, offset };
    writer.map(row(0x1000, 0x1000, 0, 0x5000)).unwrap();
    writer.map(row(0x2000, 0x1000, 0, 0x6000)).unwrap();
    writer.map(row(0x3000, 0x1000, 0, 0x9000)).unwrap();
    writer.map(row(0x4000, 0x1000, 1, 0xa000)).unwrap();
    writer.map(DmaRow { region: None, ..row(0x6000, 0x1000, 0, 0) }).unwrap();
    writer.map(row(0x7000, 0x1000, 9, 0)).unwrap();
    writer.map(row(0x8000, 0x1000, 0, 4 * MIB - 0x800)).unwrap();
    assert_eq!(
        pieces(&memory, 0x1800, 0x3000),
        Ok(vec![range(0, 0x1800, 0x5800), range(0, 0x1000, 0x9000), range(1, 0x800, 0xa000)])
    );
    assert_eq!(pieces(&memory, 0x1fff, 2), Ok(vec![range(0, 2, 0x5fff)]));
    assert_eq!(pieces(&memory, 0x1fff, 0), Ok(vec![]));
    assert_eq!(pieces(&memory, 0x4800, 0x801), Err(DmaFaultKind::Unmapped));
    assert_eq!(pieces(&memory, 0x6000, 1), Err(DmaFaultKind::NoMemory));
    assert_eq!(pieces(&memory, 0x7000, 1), Err(DmaFaultKind::RegionMissing));
    assert_eq!(pieces(&memory, 0x8000, 1), Err(DmaFaultKind::RegionMissing));
    assert_eq!(pieces(&memory, u64::MAX, 2), Err(DmaFaultKind::Unmapped));
    // The row allows writing; the descriptor does not.
    let fault = memory.write(Iova(0x3ffe), &[1; 4]).unwrap_err();
    assert_eq!((fault.iova, fault.kind), (Iova(0x4000), DmaFaultKind::Access));
    assert!(memory.host(Iova(0x4000), 4, Access::READ).is_some());
    assert!(memory.host(Iova(0x4000), 4, Access::WRITE).is_none());
    assert!(memory.host(Iova(0x1800), 0x801, Access::READ).is_none(), "two rows");
    memory.write(Iova(0x1ffe), b"abcd").unwrap();
    let mut bytes = [0; 4];
    memory.read(Iova(0x1ffe), &mut bytes).unwrap();
    assert_eq!(&bytes, b"abcd");
    let host = memory.regions().host(range(0, 4, 0x5ffe), Access::READ).unwrap();
    assert!(host.compare(b"abcd"));
}

#[test]
fn removed_rows_are_gone_after_a_refresh_and_new_ones_are_there_at_once() {
    let (mut writer, mut memory) = memory();
    assert!(memory.host(Iova(0), 1, Access::READ).is_none());
    writer.map(row(0, 0x1000, 0, 0)).unwrap();
    assert_eq!(memory.host(Iova(0), 1, Access::READ).map(|slice| slice.len()), Some(1));
    let version = writer.unmap(Iova(0), 0x1000).unwrap();
    assert_eq!(memory.refresh(), version);
    assert!(memory.host(Iova(0), 1, Access::READ).is_none());
    writer.map(row(0, 0x1000, 0, 0x1000)).unwrap();
    assert_eq!(pieces(&memory, 0, 1).unwrap()[0].offset, 0x1000);
    memory.regions_mut().remove(RegionId(0));
    assert_eq!(pieces(&memory, 0, 1), Err(DmaFaultKind::RegionMissing));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Against a model of single bytes: where each address leads.
    #[test]
    fn translation_equals_a_walk_byte_by_byte(
        rows in proptest::collection::vec((0u64..64, 1u64..5, 0u64..60), 1..40),
        asks in proptest::collection::vec((0u64..70 * 512, 0u32..4096), 1..60),
        unmapped in proptest::collection::vec(0u64..64, 0..10),
    ) {
        let (mut writer, mut memory) = memory();
        let mut model = vec![None; 70 * 512 + 8192];
        let check = |memory: &GuestMemory, model: &[Option<u64>]| {
            for &(iova, len) in &asks {
                let span = &model[iova as usize..][..len as usize];
                let expected: Option<Vec<u64>> = span.iter().copied().collect();
                let found = pieces(memory, iova, len).ok();
                let flat = found.as_ref().map(|ranges| {
                    let bytes = |r: &MemRange| r.offset..r.offset + u64::from(r.len);
                    ranges.iter().flat_map(bytes).collect::<Vec<_>>()
                });
                assert_eq!(flat, expected);
                let ranges = found.unwrap_or_default();
                assert!(ranges.windows(2).all(|two| two[0].merged(two[1]).is_none()));
            }
        };
        for &(at, len, offset) in &rows {
            let row = row(at * 512, len * 512, 0, offset * 512);
            if writer.map(row) == Ok(crate::dma_table::Mapped::New) {
                for byte in 0..row.size {
                    model[(row.iova.0 + byte) as usize] = Some(row.offset + byte);
                }
            }
        }
        check(&memory, &model);
        for at in unmapped {
            let mut found = None;
            writer.for_each(|row| {
                if row.iova.0 == at * 512 {
                    found = Some(row);
                }
            });
            if let Some(row) = found {
                writer.unmap(row.iova, row.size).unwrap();
                model[row.iova.0 as usize..][..row.size as usize].fill(None);
            }
        }
        memory.refresh();
        check(&memory, &model);
    }
}

#[test]
fn prefault_leaves_holes_alone_and_ends_with_its_region() {
    let fd = memfd(64 * MIB);
    let again = fd.try_clone().unwrap();
    nix::sys::uio::pwrite(&fd, &[1; 8192], 40 * MIB as i64).unwrap();
    let before = nix::sys::stat::fstat(&again).unwrap().st_blocks;
    let region = map(fd).unwrap();
    region.prefault().unwrap();
    let weak = Arc::downgrade(&region);
    drop(region);
    let until = Instant::now() + Duration::from_secs(60);
    while weak.strong_count() > 0 && Instant::now() < until {
        std::thread::yield_now();
    }
    assert_eq!(weak.strong_count(), 0);
    assert_eq!(nix::sys::stat::fstat(&again).unwrap().st_blocks, before);
}

/// Prints what a translation costs: `cargo test --release -p ipc guest_memory -- --ignored --nocapture`.
#[test]
#[ignore = "prints figures: make bench runs it"]
fn cost_of_translation() {
    let (mut writer, memory) = memory();
    for page in 0..65_534 {
        writer.map(row(page << 12, 4096, 0, (page % 1024) << 12)).unwrap();
    }
    writer.map(row(1 << 40, 4 * MIB, 0, 0)).unwrap();
    let mut sum = 0;
    let mut timed = |what: &str, act: &mut dyn FnMut(u64) -> u64| {
        let start = Instant::now();
        (0..4_000_000).for_each(|at| sum += act(at));
        println!("{what}: {:.1} ns", start.elapsed().as_nanos() as f64 / 4e6);
    };
    let host = |iova: u64| {
        let slice = memory.host(std::hint::black_box(Iova(iova)), 4096, Access::READ);
        std::hint::black_box(slice).map_or(0, |slice| slice.len() as u64)
    };
    timed("host, 128 hot pages of 65535", &mut |at| host((at * 7 % 128) << 12));
    timed("host, one row of 4 MiB", &mut |at| host((1 << 40) + ((at * 7 % 1024) << 12)));
    timed("host, random page of 65535", &mut |at| host((at * 7919 % 65_534) << 12));
    let translate = |iova: u64, len| {
        let mut bytes = 0;
        let mut push = |range: MemRange| bytes += u64::from(range.len);
        let _ = memory.translate(std::hint::black_box(Iova(iova)), len, Access::READ, &mut push);
        bytes
    };
    timed("translate, 128 hot pages of 65535", &mut |at| translate((at * 7 % 128) << 12, 4096));
    timed("translate, 16 hot pages at once", &mut |at| translate((at * 7 % 64) << 12, 65_536));
    assert!(sum > 0);
}
