//! Every operation on every driver, by lease and by ring, against a plain vector of bytes.

mod block_device;
mod rig;

use bdev::channel::Channel;
use bdev::file::{FileDevice, FileOptions};
use bdev::request::{ErrorKind, Op, Outcome, Request};
use block_device::LoopDevice;
use ipc::guest_memory::{MemRange, RegionId};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use rig::{GUEST, Rig};
use std::time::Duration;

const SECTOR: u64 = 512;
const SECTORS: u64 = 64;

/// One request, as drawn.
#[derive(Clone, Debug)]
struct Draw {
    op: Op,
    sector: u64,
    sectors: u64,
    source: u64,
    fua: bool,
    deallocate: bool,
    /// Fill of the guest's memory; few values, so that compares often succeed.
    fill: u8,
    /// Lengths of the first ranges, in units of `grain`.
    splits: Vec<u8>,
    /// Alignment of ranges in guest memory.
    grain: usize,
}

fn draw() -> impl Strategy<Value = Draw> {
    let op = prop::sample::select(vec![
        Op::Read,
        Op::Write,
        Op::Write,
        Op::Flush,
        Op::Compare,
        Op::CompareAndWrite,
        Op::WriteZeroes,
        Op::Deallocate,
        Op::Verify,
        Op::Copy,
    ]);
    let place = (0..SECTORS + 4, 0..12_u64, 0..SECTORS);
    let rest = (any::<bool>(), any::<bool>(), 0..3_u8, prop::collection::vec(1..9_u8, 0..5));
    let grain = prop::sample::select(vec![4_usize, 512, 4096]);
    (op, place, rest, grain).prop_map(|(op, place, rest, grain)| {
        let (sector, sectors, source) = place;
        let (fua, deallocate, fill, splits) = rest;
        Draw { op, sector, sectors, source, fua, deallocate, fill, splits, grain }
    })
}

impl Draw {
    fn ranges(&self) -> Vec<MemRange> {
        let mut left = self.sectors * SECTOR * self.op.memory_factor();
        let mut ranges = Vec::new();
        let mut offset = self.grain as u64;
        let units = self.splits.iter().map(|&units| u64::from(units) * self.grain as u64);
        for len in units.chain([u64::MAX]) {
            let len = len.min(left);
            if len > 0 {
                ranges.push(MemRange { region: RegionId(0), len: len as u32, offset });
            }
            left -= len;
            // A gap, so that neighbours are not one range.
            offset = (offset + len).next_multiple_of(self.grain as u64) + self.grain as u64;
        }
        assert!(offset <= GUEST as u64);
        ranges
    }

    fn request<'a>(&self, ranges: &'a [MemRange], tag: u32) -> Request<'a> {
        Request {
            fua: self.fua,
            deallocate: self.deallocate,
            source: self.source * SECTOR,
            ..Request::new(self.op, self.sector * SECTOR, self.sectors * SECTOR, ranges, tag)
        }
    }
}

/// What the request does to the model: its outcome, and the bytes that a read returns.
fn apply(model: &mut [u8], draw: &Draw, memory: &[u8]) -> (Outcome, Vec<u8>) {
    let size = model.len() as u64;
    let (offset, length) = (draw.sector * SECTOR, draw.sectors * SECTOR);
    let source = draw.source * SECTOR;
    let outside = |start: u64| start + length > size;
    if draw.op == Op::Flush {
        return (Ok(()), Vec::new());
    }
    if outside(offset) || draw.op == Op::Copy && outside(source) {
        return (Err(ErrorKind::OutOfRange), Vec::new());
    }
    let at = offset as usize..(offset + length) as usize;
    let outcome = match draw.op {
        Op::Read => return (Ok(()), model[at].to_vec()),
        Op::Write => {
            model[at].copy_from_slice(memory);
            Ok(())
        }
        Op::Compare if model[at.clone()] != *memory => Err(ErrorKind::CompareFailed),
        Op::CompareAndWrite => {
            let (expected, new) = memory.split_at(memory.len() / 2);
            if model[at.clone()] == *expected {
                model[at].copy_from_slice(new);
                Ok(())
            } else {
                Err(ErrorKind::CompareFailed)
            }
        }
        Op::WriteZeroes | Op::Deallocate => {
            model[at].fill(0);
            Ok(())
        }
        Op::Copy => {
            model.copy_within(source as usize..(source + length) as usize, at.start);
            Ok(())
        }
        Op::Flush | Op::Verify | Op::Compare => Ok(()),
    };
    (outcome, Vec::new())
}

fn check(rig: &mut Rig, draws: &[Draw]) {
    let mut model = vec![0; (SECTORS * SECTOR) as usize];
    for (index, draw) in draws.iter().enumerate() {
        let ranges = draw.ranges();
        let mut memory = Vec::new();
        for range in &ranges {
            let slice = rig.region.whole().sub(range.offset as usize, range.len as usize).unwrap();
            slice.fill(draw.fill);
            memory.extend(std::iter::repeat_n(draw.fill, range.len as usize));
        }
        if draw.op == Op::CompareAndWrite {
            // What is written differs from what is compared.
            let slice = rig.region.whole();
            let mut position = 0;
            for range in &ranges {
                for byte in 0..range.len as usize {
                    if position >= memory.len() / 2 {
                        memory[position] = 2 - draw.fill;
                        slice.sub(range.offset as usize + byte, 1).unwrap().fill(2 - draw.fill);
                    }
                    position += 1;
                }
            }
        }
        let (outcome, data) = apply(&mut model, draw, &memory);
        assert_eq!(rig.run(&draw.request(&ranges, index as u32)), outcome, "{index}: {draw:?}");
        if draw.op == Op::Read && outcome.is_ok() {
            let mut found = Vec::new();
            for range in &ranges {
                let mut part = vec![0; range.len as usize];
                let slice = rig.region.whole();
                slice.sub(range.offset as usize, part.len()).unwrap().copy_to(&mut part);
                found.extend(part);
            }
            assert!(found == data, "{index}: {draw:?} returned other bytes");
        }
    }
    let stored = rig.read(0, model.len());
    assert!(stored == model, "the device differs from the model at the end");
}

fn file_rig(directory: &std::path::Path, direct: bool, by_ring: bool) -> (tempfile::TempDir, Rig) {
    let directory = tempfile::tempdir_in(directory).unwrap();
    let rig = Rig::file(&directory.path().join("disk"), SECTORS * SECTOR, direct, by_ring);
    (directory, rig)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn malloc_by_lease_equals_the_model(draws in prop::collection::vec(draw(), 1..40)) {
        check(&mut Rig::malloc(SECTORS * SECTOR, false), &draws);
    }

    #[test]
    fn malloc_by_ring_equals_the_model(draws in prop::collection::vec(draw(), 1..40)) {
        check(&mut Rig::malloc(SECTORS * SECTOR, true), &draws);
    }

    #[test]
    fn direct_file_by_ring_equals_the_model(draws in prop::collection::vec(draw(), 1..40)) {
        let (_directory, mut rig) = file_rig(std::path::Path::new(env!("CARGO_TARGET_TMPDIR")), true, true);
        check(&mut rig, &draws);
    }

    #[test]
    fn cached_file_by_its_own_channel_equals_the_model(
        draws in prop::collection::vec(draw(), 1..40),
    ) {
        let (_directory, mut rig) = file_rig(std::path::Path::new(env!("CARGO_TARGET_TMPDIR")), false, false);
        check(&mut rig, &draws);
    }

    #[test]
    fn file_on_tmpfs_by_ring_equals_the_model(draws in prop::collection::vec(draw(), 1..40)) {
        let (_directory, mut rig) = file_rig(std::path::Path::new("/dev/shm"), true, true);
        check(&mut rig, &draws);
    }

    #[test]
    fn direct_file_by_threads_equals_the_model(draws in prop::collection::vec(draw(), 1..40)) {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = directory.path().join("disk");
        let options =
            FileOptions { size: SECTORS * SECTOR, create: true, threads: true, ..FileOptions::new(path) };
        check(&mut Rig::open(&options, true), &draws);
    }

    #[test]
    fn file_on_tmpfs_by_threads_equals_the_model(draws in prop::collection::vec(draw(), 1..40)) {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = directory.path().join("disk");
        let options =
            FileOptions { size: SECTORS * SECTOR, create: true, threads: true, ..FileOptions::new(path) };
        check(&mut Rig::open(&options, false), &draws);
    }

    /// Null has no content: only outcomes can be checked, and a compare never fails.
    #[test]
    fn null_by_lease_and_by_ring_has_the_models_outcomes(
        draws in prop::collection::vec(draw(), 1..40),
        by_ring in any::<bool>(),
    ) {
        let mut rig = Rig::null(SECTORS * SECTOR, by_ring);
        let mut model = vec![0; (SECTORS * SECTOR) as usize];
        for (index, draw) in draws.iter().enumerate() {
            let ranges = draw.ranges();
            let memory = vec![0; (draw.sectors * SECTOR * draw.op.memory_factor()) as usize];
            model.fill(0);
            let (outcome, _) = apply(&mut model, draw, &memory);
            prop_assert_eq!(rig.run(&draw.request(&ranges, index as u32)), outcome);
        }
    }
}

#[test]
fn block_device_equals_the_model() {
    let Some(device) = LoopDevice::new(SECTORS * SECTOR) else { return };
    for (threads, direct) in [(false, true), (false, false), (true, true), (true, false)] {
        let options = FileOptions { threads, direct, ..FileOptions::new(device.path()) };
        let mut runner = TestRunner::new(ProptestConfig { cases: 8, ..ProptestConfig::default() });
        let draws = prop::collection::vec(draw(), 1..40);
        let result = runner.run(&draws, |draws| {
            let mut rig = Rig::open(&options, true);
            let erase = Request::new(Op::WriteZeroes, 0, SECTORS * SECTOR, &[], 1);
            assert_eq!(rig.run(&erase), Ok(()));
            check(&mut rig, &draws);
            Ok(())
        });
        result.unwrap_or_else(|error| panic!("threads: {threads}, direct: {direct}: {error}"));
    }
}

#[test]
fn block_device_has_its_own_size_and_one_owner() {
    let Some(block) = LoopDevice::new(SECTORS * SECTOR) else { return };
    let options = FileOptions { lock_wait: Duration::ZERO, ..FileOptions::new(block.path()) };
    let mut device = FileDevice::open(&options).unwrap();
    assert_eq!(device.geometry().size, SECTORS * SECTOR);
    assert!(device.direct());
    assert!(device.alignment().unit >= SECTOR);
    assert_eq!(device.resize(0).unwrap(), SECTORS * SECTOR);
    assert_eq!(device.resize(2 * SECTORS * SECTOR).unwrap_err().kind, ErrorKind::Invalid);
    assert_eq!(FileDevice::open(&options).err().unwrap().kind, ErrorKind::Busy);
    drop(device);
    let larger = FileOptions { size: 2 * SECTORS * SECTOR, ..options.clone() };
    assert_eq!(FileDevice::open(&larger).err().unwrap().kind, ErrorKind::Invalid);
    let part = FileOptions { size: SECTOR * 8, read_only: true, ..options };
    let device = FileDevice::open(&part).unwrap();
    assert_eq!((device.geometry().size, device.geometry().read_only), (SECTOR * 8, true));
}
