//! Rings and leases with their sides on threads of their own: parking, death, fused pairs against leased writers.

mod rig;

use bdev::channel::{Channel, Geometry, Submitted};
use bdev::malloc::MallocChannel;
use bdev::null::NullChannel;
use bdev::request::{ErrorKind, Op, Request};
use bdev::ring::client::RingChannel;
use bdev::ring::create_segment;
use bdev::ring::server::RingServer;
use ipc::device_memory::{DeviceMemory, WriterGate};
use ipc::event::EventFd;
use ipc::guest_memory::{MemRange, RegionId, RegionTable};
use ipc::segment::Segment;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rig::{guest, ring};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;

const GEOMETRY: Geometry = Geometry { size: 1 << 20, read_only: false };

/// Waits for an event; a minute without one is a lost wake-up.
fn wait(event: &EventFd) {
    let timeout = PollTimeout::try_from(60_000_u32).unwrap();
    let ready = poll(&mut [PollFd::new(event.as_fd(), PollFlags::POLLIN)], timeout);
    assert_ne!(ready, Ok(0), "lost wake-up");
    event.drain().unwrap();
}

/// Both sides sleep whenever they find nothing.
#[test]
fn sleeping_sides_wake_each_other() {
    const COUNT: u32 = 60_000;
    let segment = create_segment("test", 1, 16).unwrap();
    let theirs = Segment::open(segment.fd().try_clone_to_owned().unwrap()).unwrap();
    let (worker, backend) = (EventFd::create().unwrap(), EventFd::create().unwrap());
    let mut server = RingServer::new(segment, worker.try_clone().unwrap()).unwrap();
    let mut client = RingChannel::new(theirs, backend.try_clone().unwrap(), GEOMETRY).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut device = NullChannel::new(GEOMETRY, 0);
            let memory = RegionTable::new();
            while !stop.load(Ordering::Acquire) {
                if server.serve(&mut device, &memory, 0, 0) > 0 {
                    server.publish();
                } else if server.park() {
                    wait(&backend);
                    server.unpark();
                }
            }
        });
        let table = RegionTable::new();
        let (mut sent, mut done) = (0, 0);
        while done < COUNT {
            // Bursts of all lengths up to more than fits.
            for _ in 0..sent % 23 + 1 {
                let request = Request::new(Op::Verify, 0, 512, &[], sent);
                if sent == COUNT || client.submit(&request, &table, 0) != Submitted::Pending {
                    break;
                }
                sent += 1;
            }
            client.publish();
            let mut next = Vec::new();
            client.poll(0, &mut |tag, outcome| next.push((tag, outcome)));
            for (tag, outcome) in &next {
                assert_eq!((*tag, *outcome), (done, Ok(())), "out of order or failed");
                done += 1;
            }
            if next.is_empty() && client.outstanding() > 0 && client.park() {
                wait(&worker);
                client.unpark();
            }
        }
        stop.store(true, Ordering::Release);
        backend.signal().unwrap();
    });
}

#[test]
fn death_of_the_backend_ends_everything_outstanding_once() {
    let (mut client, server) = ring(GEOMETRY, 8);
    let table = RegionTable::new();
    for tag in 0..5 {
        let request = Request::new(Op::Flush, 0, 0, &[], 100 + tag);
        assert_eq!(client.submit(&request, &table, 0), Submitted::Pending);
    }
    client.publish();
    drop(server);
    client.set_gone();
    let mut told = Vec::new();
    client.poll(0, &mut |tag, outcome| told.push((tag, outcome)));
    told.sort_unstable_by_key(|&(tag, _)| tag);
    let expected: Vec<_> = (100..105).map(|tag| (tag, Err(ErrorKind::Gone))).collect();
    assert_eq!(told, expected);
    assert_eq!(client.poll(0, &mut |_, _| panic!("told twice")), 0);
    assert_eq!(client.outstanding(), 0);
    let request = Request::new(Op::Flush, 0, 0, &[], 1);
    assert_eq!(client.submit(&request, &table, 0), Submitted::Done(Err(ErrorKind::Gone)));
}

/// Bytes of the block that pairs and writes fight for: long enough that a copy can be met in its middle.
const BLOCK: u32 = 16 << 10;

/// A block holds (number of the last leased write, fused pairs since). Pairs count up; a leased write resets. Were a
/// write to land between a pair's compare and its write, an older number would come back.
#[test]
fn fused_pairs_and_leased_writes_exclude_each_other() {
    const PAIRS: u64 = 300;
    let memory = Arc::new(DeviceMemory::create("fused", 64 << 10).unwrap());
    let mut owner = MallocChannel::owner(memory.clone(), false, Arc::new(AtomicUsize::new(2)));
    let (ring_of_pairs, mut pairs) = ring(GEOMETRY, 8);
    let (ring_of_writer, mut writes) = ring(GEOMETRY, 8);
    let (stop, paired) = (AtomicBool::new(false), AtomicU64::new(0));
    let mapped = || {
        let fd = memory.fd().try_clone_to_owned().unwrap();
        Arc::new(DeviceMemory::open(fd).unwrap())
    };
    let (table, region) = guest();
    let mut writer = MallocChannel::lease(mapped(), false, 0, Some(ring_of_writer)).unwrap();
    let mut pairer = MallocChannel::lease(mapped(), false, 1, Some(ring_of_pairs)).unwrap();
    thread::scope(|scope| {
        let (stop, paired, table, region) = (&stop, &paired, &table, &region);
        scope.spawn(move || {
            while !stop.load(Ordering::Acquire) {
                pairs.serve(&mut owner, table, 0, 0);
                writes.serve(&mut owner, table, 0, 256);
                owner.poll(0, &mut |tag, outcome| match tag >> 8 {
                    0 => pairs.complete(tag as usize, outcome),
                    _ => writes.complete((tag & 255) as usize, outcome),
                });
                pairs.publish();
                writes.publish();
            }
        });
        let pairing = scope.spawn(move || {
            // Guest memory of this thread: what is expected, and right after it what is new.
            let expected = region.whole().sub(0, BLOCK as usize).unwrap();
            let new = region.whole().sub(BLOCK as usize, BLOCK as usize).unwrap();
            while paired.load(Ordering::Relaxed) < PAIRS {
                run(&mut pairer, table, Op::Read, 0, BLOCK).unwrap();
                let found = expected.load_u64(0, Ordering::Relaxed).unwrap();
                for index in 0..BLOCK as usize / 8 {
                    expected.store_u64(index * 8, found, Ordering::Relaxed);
                    new.store_u64(index * 8, found + 1, Ordering::Relaxed);
                }
                if run(&mut pairer, table, Op::CompareAndWrite, 0, 2 * BLOCK).is_ok() {
                    paired.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let words = region.whole().sub(4 * BLOCK as usize, BLOCK as usize).unwrap();
        let start = std::time::Instant::now();
        let mut number = 0;
        while !pairing.is_finished() {
            number += 1;
            for index in 0..BLOCK as usize / 8 {
                words.store_u64(index * 8, number << 32, Ordering::Relaxed);
            }
            let written = run(&mut writer, table, Op::Write, 4 * u64::from(BLOCK), BLOCK);
            assert_eq!(written, Ok(()));
            for _ in 0..number % 128 {
                run(&mut writer, table, Op::Read, 4 * u64::from(BLOCK), 512).unwrap();
                let found = words.load_u64(0, Ordering::Relaxed).unwrap() >> 32;
                assert_eq!(found, number, "a leased write was lost in the middle of a fused pair");
            }
            assert!(start.elapsed().as_secs() < 120, "pairs do not come through");
        }
        stop.store(true, Ordering::Release);
    });
}

fn run(
    channel: &mut MallocChannel,
    table: &RegionTable,
    op: Op,
    offset: u64,
    len: u32,
) -> Result<(), ErrorKind> {
    let ranges = [MemRange { region: RegionId(0), len, offset }];
    let length = u64::from(len) / op.memory_factor();
    let request = Request::new(op, 0, length, &ranges, 1);
    match channel.submit(&request, table, 0) {
        Submitted::Done(outcome) => return outcome,
        Submitted::Pending => channel.publish(),
        Submitted::Full => panic!("no room for one request"),
    }
    let mut ended = None;
    let start = std::time::Instant::now();
    while ended.is_none() {
        channel.poll(0, &mut |_, outcome| ended = Some(outcome));
        assert!(start.elapsed().as_secs() < 60, "{op:?} never ended");
        std::hint::spin_loop();
    }
    ended.unwrap()
}

#[test]
fn a_pair_waits_for_the_leased_writer_that_is_inside() {
    let memory = Arc::new(DeviceMemory::create("gate", 64 << 10).unwrap());
    let mut owner = MallocChannel::owner(memory.clone(), false, Arc::new(AtomicUsize::new(2)));
    let gate = WriterGate::new(&memory, 1).unwrap();
    let (table, region) = guest();
    region.whole().sub(512, 512).unwrap().fill(7);
    let ranges = [MemRange { region: RegionId(0), len: 1024, offset: 0 }];
    let pair = Request::new(Op::CompareAndWrite, 0, 512, &ranges, 5);
    assert!(gate.enter(&memory));
    assert_eq!(owner.submit(&pair, &table, 0), Submitted::Pending);
    assert_eq!(owner.poll(0, &mut |_, _| panic!("the writer is still inside")), 0);
    assert!(owner.deadline().is_some(), "nobody would look again");
    // What the writer does lies before the pair, which therefore fails.
    memory.slice(0, 512).unwrap().fill(1);
    gate.leave(&memory);
    assert!(!gate.enter(&memory), "a second writer comes in before the pair");
    let mut told = Vec::new();
    owner.poll(0, &mut |tag, outcome| told.push((tag, outcome)));
    assert_eq!(told, [(5, Err(ErrorKind::CompareFailed))]);
    assert!(gate.enter(&memory), "the gate stays shut");
    assert!(memory.slice(0, 512).unwrap().compare(&[1; 512]));
}

#[test]
fn a_leased_write_goes_by_ring_while_a_pair_waits_and_without_one_is_refused() {
    let memory = Arc::new(DeviceMemory::create("gate", 64 << 10).unwrap());
    let mut owner = MallocChannel::owner(memory.clone(), false, Arc::new(AtomicUsize::new(1)));
    let (table, _region) = guest();
    let (client, mut server) = ring(GEOMETRY, 8);
    let mut with_ring = MallocChannel::lease(memory.clone(), false, 0, Some(client)).unwrap();
    let mut without = MallocChannel::lease(memory.clone(), false, 0, None).unwrap();
    let ranges = [MemRange { region: RegionId(0), len: 512, offset: 0 }];
    let write = Request::new(Op::Write, 0, 512, &ranges, 1);
    assert_eq!(without.submit(&write, &table, 0), Submitted::Done(Ok(())));
    memory.begin_exclusive();
    assert_eq!(without.submit(&write, &table, 0), Submitted::Done(Err(ErrorKind::Busy)));
    assert_eq!(with_ring.submit(&write, &table, 0), Submitted::Pending);
    assert!(!memory.writers_inside(1), "a writer that was turned away left its word raised");
    with_ring.publish();
    assert_eq!(server.serve(&mut owner, &table, 0, 0), 1);
    server.publish();
    let mut ended = 0;
    with_ring.poll(0, &mut |_, outcome| ended += usize::from(outcome.is_ok()));
    assert_eq!(ended, 1);
    memory.end_exclusive();
    assert_eq!(without.submit(&write, &table, 0), Submitted::Done(Ok(())));
    let pair = [MemRange { region: RegionId(0), len: 1024, offset: 0 }];
    let pair = Request::new(Op::CompareAndWrite, 0, 512, &pair, 1);
    assert_eq!(without.submit(&pair, &table, 0), Submitted::Done(Err(ErrorKind::Unsupported)));
}
