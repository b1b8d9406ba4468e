//! Corrupt segments: what a process that went wrong, or one that was taken over, leaves for the others to read.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bdev::channel::{AnyChannel, Channel, Geometry};
use bdev::null::NullChannel;
use bdev::request::{Op, Request};
use bdev::ring::client::RingChannel;
use bdev::ring::create_segment;
use bdev::ring::server::RingServer;
use ipc::dma_table::{Access, DmaWriter};
use ipc::event::EventFd;
use ipc::guest_memory::{GuestMemory, MemRange, Region, RegionId, RegionPolicy, RegionTable};
use ipc::iova::Iova;
use ipc::layout::Layout;
use ipc::layout::channel::ChannelLayout;
use ipc::layout::controller::ControllerLayout;
use ipc::layout::queues::QueuesLayout;
use ipc::segment::Segment;
use nvme_spec::Nsid;
use nvme_spec::identify::Cns;
use nvme_spec::log_page::LogPageId;

use super::input::Input;
use crate::host::memory::memfd;
use crate::host::{Transport, commands};
use crate::simulated::{Fate, boot};

/// Stores of one input at most.
const STORES: usize = 256;

/// Spoils one of the segments as the input says, with its readers at work.
///
/// # Panics
/// If a promise is broken.
pub fn segments(data: &[u8]) {
    let mut input = Input::new(data);
    match input.u8() % 5 {
        0 => controller(&mut input),
        1 => queues(&mut input),
        2 => channel(&mut input),
        3 => dma_table(&mut input),
        _ => headers(&mut input),
    }
}

/// The bytes of a segment, to be spoilt.
fn raw<L: Layout>(segment: &Segment<L>) -> Arc<Region> {
    let fd = segment.fd().try_clone_to_owned().expect("dup");
    Region::map(fd, size_of::<L>() as u64, &RegionPolicy::default())
        .expect("map a segment of our own")
}

/// Stores a few words at places that the input chooses, within `len` bytes from `from`.
fn spoil(input: &mut Input<'_>, segment: &Region, from: usize, len: usize) {
    let count = usize::from(input.u8() % 16) + 1;
    for _ in 0..count {
        let at = from + input.u32() as usize % (len / 8).max(1) * 8;
        let value = match input.u8() % 4 {
            0 => input.u64(),
            1 => input.number() << 32 | input.number() & 0xFFFF_FFFF,
            _ => input.number(),
        };
        segment.whole().store_u64(at, value, Ordering::Relaxed);
    }
}

/// The worker reads a controller segment that says anything.
fn controller(input: &mut Input<'_>) {
    let (world, mut host) = boot(1, Fate::default());
    let segment = raw(world.get().function(0).segment());
    // Signals, settings and queue rows lie in the first part, the DMA table in the last.
    let parts = [(64, 4096), (64, 64 << 10), (64, segment.len() as usize - 64)];
    for _ in 0..STORES / 16 {
        if input.is_empty() {
            break;
        }
        let (from, len) = parts[usize::from(input.u8()) % parts.len()];
        spoil(input, &segment, from, len);
        // A version that moves on makes the worker read everything.
        world.get().function(0).segment().signals.version.fetch_add(1, Ordering::Release);
        host.queues[0].tail = input.u32() % host.queues[0].entries;
        host.ring_tail(0);
        (0..3).for_each(|_| world.get().step_worker());
    }
}

/// The frontend reads a queues segment that says anything.
fn queues(input: &mut Input<'_>) {
    let (world, mut host) = boot(1, Fate::default());
    let segment = raw::<QueuesLayout>(&world.get().queues(0).clone());
    for _ in 0..STORES / 16 {
        if input.is_empty() {
            break;
        }
        let len = if input.u8() & 1 == 0 { 16 << 10 } else { segment.len() as usize - 64 };
        spoil(input, &segment, 64, len);
        (0..2).for_each(|_| host.transport.relax());
    }
    // What the controller tells of its workers comes from there.
    let patience = std::time::Duration::from_millis(20);
    for command in [
        commands::get_log_page(LogPageId::SMART_HEALTH, Nsid::BROADCAST, 0, 512),
        commands::get_log_page(LogPageId::ERROR_INFORMATION, Nsid::BROADCAST, 0, 4096),
        commands::identify(Cns::CONTROLLER, Nsid::NONE, nvme_spec::identify::CommandSet::NVM),
    ] {
        let buffer = host.memory.allocate(4096);
        let command = host.memory.with_prps(command, buffer);
        let cid = host.post_admin(command);
        host.wait_for(patience, &mut |host| {
            host.poll_admin();
            host.events.iter().any(|event| event.cid == cid).then_some(())
        });
    }
}

/// Both ends of a ring read a channel segment that says anything.
fn channel(input: &mut Input<'_>) {
    let geometry = Geometry { size: 1 << 20, read_only: false };
    let depth = 1 << (input.u8() % 9);
    let segment = create_segment("fuzz", 1, depth).expect("segment");
    let spoilt = raw::<ChannelLayout>(&segment);
    if input.u8() & 1 == 1 {
        spoil(input, &spoilt, 64, 8);
    }
    let theirs = Segment::<ChannelLayout>::open(segment.fd().try_clone_to_owned().expect("dup"));
    let Ok(theirs) = theirs else { return };
    let event = || EventFd::create().expect("eventfd");
    let (Ok(mut client), Ok(mut server)) =
        (RingChannel::new(theirs, event(), geometry), RingServer::new(segment, event()))
    else {
        return;
    };
    let mut device = AnyChannel::Null(NullChannel::new(geometry, u64::from(input.u8())));
    let mut memory = RegionTable::new();
    let region = Region::map(memfd(1 << 16), 1 << 16, &RegionPolicy::default()).expect("region");
    memory.insert(RegionId(0), region).expect("insert");
    let mut outstanding = std::collections::BTreeSet::new();
    for round in 0..STORES as u64 {
        if input.is_empty() {
            break;
        }
        let ranges = [MemRange { region: RegionId(0), len: 512, offset: 0 }];
        let request = Request::new(Op::Write, input.number(), 512, &ranges, round as u32);
        if client.submit(&request, &memory, round) == bdev::channel::Submitted::Pending {
            outstanding.insert(round as u32);
        }
        client.publish();
        let len = if input.u8() & 1 == 0 { 8192 } else { spoilt.len() as usize - 64 };
        spoil(input, &spoilt, 64, len);
        server.serve(&mut device, &memory, round, 0);
        device.poll(round, &mut |tag, outcome| server.complete(tag as usize, outcome));
        server.publish();
        client.poll(round, &mut |tag, _| {
            assert!(outstanding.remove(&tag), "tag {tag} is reported twice or was never there");
        });
        if server.park() {
            server.unpark();
        }
        if client.park() {
            client.unpark();
        }
    }
    client.set_gone();
    client.poll(u64::MAX, &mut |tag, _| {
        assert!(outstanding.remove(&tag), "tag {tag} is reported twice or was never there");
    });
    assert!(outstanding.is_empty(), "a channel that is gone reports everything");
}

/// A table that says anything is read, and taken over by a new writer.
fn dma_table(input: &mut Input<'_>) {
    let segment = Arc::new(Segment::<ControllerLayout>::create("fuzz", 1).expect("segment"));
    let spoilt = raw(&segment);
    let table = std::mem::offset_of!(ControllerLayout, dma);
    let mut writer = DmaWriter::attach(Arc::clone(&segment)).expect("an empty table");
    for index in 0..u64::from(input.u8()) {
        let row = ipc::dma_table::DmaRow {
            iova: Iova(index << 13),
            size: 4096,
            region: Some(RegionId(0)),
            offset: 0,
            access: Access::READ_WRITE,
        };
        writer.map(row).expect("map");
    }
    let mut memory = GuestMemory::new(Arc::clone(&segment));
    let region = Region::map(memfd(1 << 16), 1 << 16, &RegionPolicy::default()).expect("region");
    memory.regions_mut().insert(RegionId(0), region).expect("insert");
    for _ in 0..STORES / 16 {
        if input.is_empty() {
            break;
        }
        let len = if input.u8() & 1 == 0 { 64 << 10 } else { spoilt.len() as usize - table };
        spoil(input, &spoilt, table, len);
        segment.signals.dma_version.fetch_add(1, Ordering::Release);
        memory.refresh();
        for _ in 0..4 {
            let mut bytes = [0; 64];
            memory.read(Iova(input.number()), &mut bytes).ok();
            memory.write(Iova(u64::from(input.u16()) << 5), &bytes).ok();
        }
        // A writer that finds nonsense says so, or cleans it up; then it works.
        if let Ok(mut writer) = DmaWriter::attach(Arc::clone(&segment)) {
            writer.unmap(Iova(0), 4096).ok();
            writer.unmap_all();
            assert!(writer.is_empty(), "everything is unmapped");
        }
    }
}

/// Headers that say anything are refused or taken, and never believed about sizes.
fn headers(input: &mut Input<'_>) {
    let segment = Segment::<QueuesLayout>::create("fuzz", 1).expect("segment");
    let spoilt = raw(&segment);
    spoil(input, &spoilt, 0, 64);
    let fd = || segment.fd().try_clone_to_owned().expect("dup");
    if let Ok(opened) = Segment::<QueuesLayout>::open(fd()) {
        opened.slots[0].fetch.store(1, Ordering::Relaxed);
    }
    assert!(Segment::<ControllerLayout>::open(fd()).is_err(), "another layout is refused");
    assert!(Segment::<QueuesLayout>::open(memfd(input.number() % (1 << 24))).is_err());
}
