//! Tests of the file device: the steps of a job by hand, and real files.

use super::buffer::{Buffers, OwnBuffer};
use super::engine::Command;
use super::job::{Job, Step};
use super::{FileDevice, FileOptions};
use crate::channel::{Channel, Submitted};
use crate::request::{ErrorKind, Op, Outcome, Request};
use ipc::guest_memory::{MemRange, Region, RegionId, RegionPolicy, RegionTable};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const GUEST: u64 = 1 << 20;

fn guest() -> (RegionTable, Arc<Region>) {
    let fd = memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).unwrap();
    nix::unistd::ftruncate(&fd, GUEST as i64).unwrap();
    let region = Region::map(fd, GUEST, &RegionPolicy::default()).unwrap();
    let mut table = RegionTable::new();
    table.insert(RegionId(0), region.clone()).unwrap();
    (table, region)
}

fn range(offset: u64, len: u32) -> [MemRange; 1] {
    [MemRange { region: RegionId(0), len, offset }]
}

/// Answers a job's operations from `results` and returns the commands and how it ended.
fn play(mut job: Job, results: &[i32]) -> (Vec<Command>, Option<Outcome>) {
    let (mut commands, mut spare) = (Vec::new(), None);
    let mut results = results.iter();
    loop {
        match job.step(spare.take()) {
            Step::End(outcome) => return (commands, Some(outcome)),
            Step::Run(command, buffers) => {
                commands.push(command);
                let Some(&result) = results.next() else { return (commands, None) };
                let (outcome, buffer) = job.take(result, buffers);
                if outcome.is_some() {
                    return (commands, outcome);
                }
                spare = buffer;
            }
        }
    }
}

#[test]
fn short_and_interrupted_transfers_go_on_where_they_stopped() {
    let (table, _region) = guest();
    let ranges = range(0, 8192);
    let write = Request { fua: true, ..Request::new(Op::Write, 4096, 8192, &ranges, 1) };
    let job = Job::new(&write, &table, 512, 4).unwrap();
    // 600 bytes are one whole unit and a part that is done again.
    let (commands, outcome) = play(job, &[600, -libc::EINTR, 7680]);
    let at = |offset| Command::Write { offset, durable: true };
    assert_eq!(commands, [at(4096), at(4608), at(4608)]);
    assert_eq!(outcome, Some(Ok(())));
    let job = Job::new(&Request::new(Op::Read, 0, 8192, &ranges, 1), &table, 512, 4).unwrap();
    assert_eq!(play(job, &[4096, 0]).1, Some(Err(ErrorKind::Medium)), "the file ends early");
}

#[test]
fn the_kernels_errors_become_kinds() {
    let (table, _region) = guest();
    let ranges = range(0, 512);
    for (errno, kind) in [
        (libc::ENOSPC, ErrorKind::NoSpace),
        (libc::EDQUOT, ErrorKind::NoSpace),
        (libc::EIO, ErrorKind::Medium),
        (libc::EFAULT, ErrorKind::Fault),
        (libc::EINVAL, ErrorKind::Invalid),
        (libc::EROFS, ErrorKind::ReadOnly),
    ] {
        let write = Request::new(Op::Write, 0, 512, &ranges, 1);
        let job = Job::new(&write, &table, 512, 4).unwrap();
        assert_eq!(play(job, &[-errno]).1, Some(Err(kind)));
    }
    let job = Job::new(&Request::new(Op::Flush, 0, 0, &[], 1), &table, 512, 4).unwrap();
    let again = vec![-libc::EAGAIN; 2000];
    assert_eq!(play(job, &again).1, Some(Err(ErrorKind::Busy)), "again is not for ever");
}

#[test]
fn zeroes_are_allocated_or_else_written_and_durable_if_asked() {
    let (table, _region) = guest();
    let zero = |fua, deallocate| Request {
        fua,
        deallocate,
        ..Request::new(Op::WriteZeroes, 0, 3 << 20, &[], 1)
    };
    let job = |request: &Request<'_>| Job::new(request, &table, 512, 4).unwrap();
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let range = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
    let allocate = |mode| Command::Allocate { offset: 0, len: 3 << 20, mode };
    assert_eq!(play(job(&zero(false, false)), &[0]).0, [allocate(range)]);
    assert_eq!(play(job(&zero(true, true)), &[0, 0]).0, [allocate(punch), Command::Sync]);
    let refused = [-libc::EOPNOTSUPP, -libc::EOPNOTSUPP, 1 << 20, 1 << 20, 1 << 20];
    let (commands, outcome) = play(job(&zero(false, true)), &refused);
    let write = |offset| Command::Write { offset, durable: false };
    let writes = [write(0), write(1 << 20), write(2 << 20)];
    assert_eq!(commands[..2], [allocate(punch), allocate(range)]);
    assert_eq!((&commands[2..], outcome), (&writes[..], Some(Ok(()))));
}

#[test]
fn an_overlapping_copy_upwards_starts_at_its_end() {
    let (table, _region) = guest();
    let mib = 1 << 20;
    let copy = Request { source: 0, ..Request::new(Op::Copy, mib / 2, 2 * mib, &[], 1) };
    let job = Job::new(&copy, &table, 512, 4).unwrap();
    let (commands, outcome) = play(job, &[1 << 20, 1 << 20, 1 << 20, 1 << 20]);
    let (read, write) =
        (|offset| Command::Read { offset }, |offset| Command::Write { offset, durable: false });
    let expected = [read(mib), write(mib + mib / 2), read(0), write(mib / 2)];
    assert_eq!((commands.as_slice(), outcome), (&expected[..], Some(Ok(()))));
}

#[test]
fn misaligned_offsets_are_refused_and_misaligned_memory_is_bounced() {
    let (table, _region) = guest();
    let ranges = range(0, 512);
    let off = Request::new(Op::Read, 100, 512, &ranges, 1);
    assert_eq!(Job::new(&off, &table, 512, 4).unwrap_err(), ErrorKind::Invalid);
    let is_bounced = |offset| {
        let ranges = range(offset, 512);
        let mut job =
            Job::new(&Request::new(Op::Read, 0, 512, &ranges, 1), &table, 512, 512).unwrap();
        matches!(job.step(None), Step::Run(_, Buffers::Own(_)))
    };
    assert!(!is_bounced(512));
    assert!(is_bounced(516));
    assert!(OwnBuffer::new(512).bytes().as_ptr().addr().is_multiple_of(4096));
}

fn options(path: &Path) -> FileOptions {
    FileOptions { size: 1 << 20, create: true, lock_wait: Duration::ZERO, ..FileOptions::new(path) }
}

fn open(path: &Path) -> FileDevice {
    FileDevice::open(&options(path)).unwrap()
}

/// Waits for all that is under way; outcomes by tag.
fn drain(device: &mut FileDevice) -> Vec<(u32, Outcome)> {
    let mut told = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(20);
    while device.outstanding() > 0 {
        assert!(Instant::now() < deadline, "requests never end");
        device.poll(0, &mut |tag, outcome| told.push((tag, outcome)));
    }
    told
}

#[test]
fn a_file_has_one_owner_until_its_last_request_is_over() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    let first = open(&path);
    let error = FileDevice::open(&options(&path)).err().unwrap();
    assert_eq!(error.kind, ErrorKind::Busy, "{error}");
    drop(first);
    open(&path);
}

#[test]
fn what_is_no_disk_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let refused = |options: FileOptions| FileDevice::open(&options).err().unwrap().kind;
    assert_eq!(refused(options(Path::new("/dev/null"))), ErrorKind::Unsupported);
    let empty = FileOptions { size: 0, ..options(&directory.path().join("empty")) };
    assert_eq!(refused(empty), ErrorKind::Invalid);
    let missing = FileOptions { create: false, ..options(&directory.path().join("missing")) };
    assert!(FileDevice::open(&missing).is_err());
    let path = directory.path().join("small");
    std::fs::write(&path, [0; 4096]).unwrap();
    let larger = FileOptions { read_only: true, ..options(&path) };
    assert_eq!(refused(larger), ErrorKind::Invalid);
}

#[test]
fn a_read_only_file_is_not_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    std::fs::write(&path, vec![5; 8192]).unwrap();
    let only = FileOptions { read_only: true, size: 0, create: false, ..options(&path) };
    let mut device = FileDevice::open(&only).unwrap();
    assert_eq!(device.geometry().size, 8192);
    let (table, region) = guest();
    let ranges = range(0, 4096);
    let read = Request::new(Op::Read, 0, 4096, &ranges, 1);
    assert_eq!(device.submit(&read, &table, 0), Submitted::Pending);
    assert_eq!(drain(&mut device), [(1, Ok(()))]);
    assert!(region.whole().sub(0, 4096).unwrap().compare(&[5; 4096]));
    for op in [Op::Write, Op::WriteZeroes, Op::Deallocate, Op::Copy] {
        let ranges = if op == Op::Write { &ranges[..] } else { &[] };
        let request = Request::new(op, 0, 4096, ranges, 1);
        let refused = Submitted::Done(Err(ErrorKind::ReadOnly));
        assert_eq!(device.submit(&request, &table, 0), refused, "{op:?}");
    }
    assert!(device.resize(16384).is_err());
}

#[test]
fn deallocation_gives_space_back_and_growth_reads_as_zeroes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    let mut device = open(&path);
    let (table, region) = guest();
    region.whole().fill(9);
    let ranges = range(0, 1 << 20);
    let write = Request::new(Op::Write, 0, 1 << 20, &ranges, 1);
    assert_eq!(device.submit(&write, &table, 0), Submitted::Pending);
    let flush = Request::new(Op::Flush, 0, 0, &[], 2);
    assert_eq!(drain(&mut device), [(1, Ok(()))]);
    assert_eq!(device.submit(&flush, &table, 0), Submitted::Pending);
    drain(&mut device);
    let before = std::fs::metadata(&path).unwrap().blocks();
    let deallocate = Request::new(Op::Deallocate, 0, 1 << 19, &[], 3);
    assert_eq!(device.submit(&deallocate, &table, 0), Submitted::Pending);
    assert_eq!(drain(&mut device), [(3, Ok(()))]);
    assert!(std::fs::metadata(&path).unwrap().blocks() < before);
    assert_eq!(device.resize(2 << 20).unwrap(), 2 << 20);
    assert_eq!(device.resize(1 << 20).unwrap_err().kind, ErrorKind::Invalid);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 2 << 20);
    let read = Request::new(Op::Read, 1 << 20, 1 << 20, &ranges, 4);
    assert_eq!(device.submit(&read, &table, 0), Submitted::Pending);
    drain(&mut device);
    assert!(region.whole().compare(&vec![0; 1 << 20]));
}

/// While a pair is under way, a write to its blocks waits; a write elsewhere does not; and the pair waits for writes.
#[test]
fn a_pair_and_writes_to_its_blocks_take_turns() {
    for threads in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let options = FileOptions { threads, ..options(&directory.path().join("disk")) };
        take_turns(FileDevice::open(&options).unwrap());
    }
}

fn take_turns(mut device: FileDevice) {
    let (table, region) = guest();
    for round in 1..40_u8 {
        let old = round - 1;
        // Compare with what the last round left, write `round + 100`; the write after it leaves `round`.
        region.whole().sub(0, 4096).unwrap().fill(old);
        region.whole().sub(4096, 4096).unwrap().fill(round + 100);
        region.whole().sub(8192, 4096).unwrap().fill(round);
        let (pair, write) = (range(0, 8192), range(8192, 4096));
        let pair = Request::new(Op::CompareAndWrite, 0, 4096, &pair, 1);
        let after = Request::new(Op::Write, 0, 4096, &write, 2);
        let elsewhere = Request::new(Op::Write, 8192, 4096, &write, 3);
        for request in [&pair, &after, &elsewhere] {
            assert_eq!(device.submit(request, &table, 0), Submitted::Pending);
        }
        let second = Request { tag: 4, ..pair };
        assert_eq!(device.submit(&second, &table, 0), Submitted::Pending);
        let mut told = drain(&mut device);
        told.sort_unstable_by_key(|&(tag, _)| tag);
        let differs = Err(ErrorKind::CompareFailed);
        assert_eq!(told, [(1, Ok(())), (2, Ok(())), (3, Ok(())), (4, differs)], "{round}");
        let ranges = range(65536, 4096);
        let read = Request::new(Op::Read, 0, 4096, &ranges, 5);
        assert_eq!(device.submit(&read, &table, 0), Submitted::Pending);
        drain(&mut device);
        assert!(region.whole().sub(65536, 4096).unwrap().compare(&[round; 4096]), "{round}");
    }
}

#[test]
fn more_requests_than_places_are_put_off() {
    let directory = tempfile::tempdir().unwrap();
    let (table, _region) = guest();
    let mut device = open(&directory.path().join("disk"));
    let ranges = range(0, 4096);
    for tag in 0..super::MAX_JOBS as u32 {
        let read = Request::new(Op::Read, 0, 4096, &ranges, tag);
        assert_eq!(device.submit(&read, &table, 0), Submitted::Pending);
    }
    let read = Request::new(Op::Read, 0, 4096, &ranges, 9999);
    assert_eq!(device.submit(&read, &table, 0), Submitted::Full);
    assert_eq!(drain(&mut device).len(), super::MAX_JOBS);
    assert_eq!(device.submit(&read, &table, 0), Submitted::Pending);
}
