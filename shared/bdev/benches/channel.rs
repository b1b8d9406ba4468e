//! What a request costs on each kind of channel, in nanoseconds: medians over rounds, printed as a table. Figures, not
//! tests: nothing here fails for being slow.

use bdev::channel::{AnyChannel, Channel, Geometry, Need, Submitted};
use bdev::malloc::MallocChannel;
use bdev::null::NullChannel;
use bdev::request::{Op, Request};
use bdev::ring::client::RingChannel;
use bdev::ring::create_segment;
use bdev::ring::server::RingServer;
use ipc::device_memory::DeviceMemory;
use ipc::event::EventFd;
use ipc::guest_memory::{MemRange, Region, RegionId, RegionPolicy, RegionTable};
use ipc::segment::Segment;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

const GUEST: u64 = 64 << 20;
const DEVICE: u64 = 1 << 30;
const BLOCK: u64 = 4096;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let table = guest_memory()?;
    let geometry = Geometry { size: DEVICE, read_only: false };
    let null = |latency| AnyChannel::Null(NullChannel::new(geometry, latency));
    row("null lease, 4 KiB read", &measure(&mut null(0), &table, Op::Read, 1 << 20));

    let memory = Arc::new(DeviceMemory::create("bench", DEVICE)?);
    memory.prefault();
    let mut owner = MallocChannel::owner(memory.clone(), false, Arc::new(AtomicUsize::new(1)));
    let mut lease = AnyChannel::Malloc(MallocChannel::lease(memory.clone(), false, 0, None)?);
    row("one memcpy of 4 KiB, random, by itself", &copy_floor(&memory, &table)?);
    row("malloc lease, 4 KiB random read", &measure(&mut lease, &table, Op::Read, 1 << 17));
    row("malloc lease, the same, next prefetched", &measure_prefetched(&mut lease, &table)?);
    row("malloc lease, 4 KiB random write", &measure(&mut lease, &table, Op::Write, 1 << 17));
    row(
        "malloc owner, the same without the gate",
        &measure(&mut owner, &table, Op::Write, 1 << 17),
    );
    row("malloc lease, write of 0 bytes (gate)", &measure_empty(&mut lease, &table));
    row("malloc owner, write of 0 bytes (no gate)", &measure_empty(&mut owner, &table));

    for depth in [1, 128] {
        let figure = ring_round_trip(&mut null(0), depth)?;
        row(&format!("ring to null on another thread, depth {depth}, per request"), &figure);
    }
    Ok(())
}

fn row(what: &str, rounds: &[f64]) {
    let mut sorted = rounds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (median, best) = (sorted[sorted.len() / 2], sorted[0]);
    println!("{what:<60} {median:>9.1} ns  (best {best:.1})");
}

fn guest_memory() -> Result<RegionTable> {
    let fd = memfd_create(c"bench-guest", MFdFlags::MFD_CLOEXEC)?;
    nix::unistd::ftruncate(&fd, GUEST as i64)?;
    let region = Region::map(fd, GUEST, &RegionPolicy::default())?;
    region.whole().fill(1);
    let mut table = RegionTable::new();
    table.insert(RegionId(0), region).map_err(|_| "region id")?;
    Ok(table)
}

fn places(count: u64) -> Vec<(u64, [MemRange; 1])> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let place = |_| {
        let offset = next() % (GUEST / BLOCK) * BLOCK;
        let range = MemRange { region: RegionId(0), len: BLOCK as u32, offset };
        (next() % (DEVICE / BLOCK) * BLOCK, [range])
    };
    (0..count).map(place).collect()
}

fn rounds(count: u64, mut run: impl FnMut()) -> Vec<f64> {
    let round = |_| {
        let start = Instant::now();
        run();
        start.elapsed().as_nanos() as f64 / count as f64
    };
    (0..9).map(round).collect()
}

fn measure(channel: &mut impl Channel, table: &RegionTable, op: Op, count: u64) -> Vec<f64> {
    let places = places(count.min(1 << 17));
    rounds(count, || {
        for index in 0..count as usize {
            let (offset, ranges) = &places[index % places.len()];
            let request = Request::new(op, *offset, BLOCK, ranges, index as u32);
            let _ = black_box(channel.submit(black_box(&request), table, 0));
        }
    })
}

fn measure_prefetched(channel: &mut AnyChannel, table: &RegionTable) -> Result<Vec<f64>> {
    let places = places(1 << 17);
    Ok(rounds(places.len() as u64, || {
        for pair in places.windows(2) {
            let next = Request::new(Op::Read, pair[1].0, BLOCK, &pair[1].1, 0);
            channel.load(&next, table, Need::Next);
            let request = Request::new(Op::Read, pair[0].0, BLOCK, &pair[0].1, 0);
            let _ = black_box(channel.submit(&request, table, 0));
        }
    }))
}

fn measure_empty(channel: &mut impl Channel, table: &RegionTable) -> Vec<f64> {
    let count = 1 << 20;
    rounds(count, || {
        for tag in 0..count as u32 {
            let request = Request::new(Op::Write, 4096, 0, &[], tag);
            let _ = black_box(channel.submit(black_box(&request), table, 0));
        }
    })
}

fn copy_floor(memory: &DeviceMemory, table: &RegionTable) -> Result<Vec<f64>> {
    let places = places(1 << 17);
    let region = table.get(RegionId(0)).ok_or("region")?.whole();
    Ok(rounds(places.len() as u64, || {
        for (offset, [range]) in &places {
            let data = memory.slice(*offset, BLOCK);
            let guest = region.sub(range.offset as usize, BLOCK as usize);
            if let (Some(data), Some(guest)) = (data, guest) {
                black_box(guest.copy_from_slice(&data));
            }
        }
    }))
}

fn ring_round_trip(device: &mut AnyChannel, depth: usize) -> Result<Vec<f64>> {
    let segment = create_segment("bench", 1, 256)?;
    let theirs = Segment::open(segment.fd().try_clone_to_owned()?)?;
    let (worker, backend) = (EventFd::create()?, EventFd::create()?);
    let mut server = RingServer::new(segment, worker)?;
    let geometry = device.geometry();
    let mut client = RingChannel::new(theirs, backend, geometry)?;
    let stop = AtomicBool::new(false);
    let table = RegionTable::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let memory = RegionTable::new();
            while !stop.load(Ordering::Relaxed) {
                if server.serve(device, &memory, 0, 0) > 0 {
                    server.publish();
                } else {
                    std::hint::spin_loop();
                }
            }
        });
        let count = 200_000;
        let figure = rounds(count, || {
            let (mut sent, mut done) = (0, 0);
            while done < count {
                while sent < count && sent - done < depth as u64 {
                    let request = Request::new(Op::Verify, 0, BLOCK, &[], sent as u32);
                    if client.submit(&request, &table, 0) != Submitted::Pending {
                        break;
                    }
                    sent += 1;
                }
                client.publish();
                done += client.poll(0, &mut |_, _| {}) as u64;
            }
        });
        stop.store(true, Ordering::Relaxed);
        Ok(figure)
    })
}
