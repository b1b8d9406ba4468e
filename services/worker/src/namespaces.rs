//! Namespaces of one controller as this worker sees them, and the channels to their block devices. On the hot path.

mod shut;

pub use shut::{Paused, Shut};

use crate::controller::Request;
use bdev::channel::{AnyChannel, Channel};
use ipc::guest_memory::Region;
use ipc::layout::MAX_NAMESPACES;
use ipc::layout::controller::{NamespaceRow, namespace_flags};
use nvme::nvm::Namespace;
use nvme_spec::BlockCount;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Smallest and largest logical block size that is served, as shifts.
const BLOCK_SHIFTS: std::ops::RangeInclusive<u32> = 9..=16;

/// A namespace.
pub struct Entry {
    /// Size, block size, flags; `None` if there is no such namespace.
    pub view: Option<Namespace>,
    /// Tells its block device from an earlier one.
    pub generation: u32,
    /// I/O is served by the ring even where there is a lease.
    pub force_ring: bool,
    /// The channel, once it is open.
    pub channel: Option<Box<AnyChannel>>,
    /// The channel that takes the place of one that still has requests outstanding.
    next: Option<Box<AnyChannel>>,
    /// A channel was asked for and has not come.
    pub opening: bool,
    /// Requests were submitted that are not published.
    pub unpublished: bool,
    /// Why the channel takes no new command.
    pub shut: Shut,
    /// The number of the namespace's pause ([`NamespaceRow::pause_number`]); 0 if it is not paused.
    pub pause: u64,
    /// It was acknowledged: nothing of the namespace is in flight, and nothing is to be.
    pub still: bool,
    /// The channel's backend is gone: it takes nothing more, and what it has outstanding ends when nothing of that is
    /// under way ([`Namespaces::end`]).
    lost: bool,
}

impl Entry {
    /// Whether the channel belongs to a block device that is no longer the namespace's: it goes when nothing is
    /// outstanding.
    pub fn is_retiring(&self) -> bool {
        self.shut.has(Shut::RETIRING)
    }

    fn set_retiring(&mut self, retiring: bool) {
        self.shut.set(Shut::RETIRING, retiring);
    }

    /// Whether the channel's backend is gone. What ends then with `ErrorKind::Gone` is not under way any more.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// Whether there is no channel to wait for that would come by itself.
    pub fn is_closed(&self) -> bool {
        self.channel.is_none() || self.lost
    }
}

/// All namespaces of a controller, by row.
pub struct Namespaces {
    entries: Vec<Entry>,
    /// Rows that have a channel.
    open: Vec<u16>,
    /// One of the channels since there was none copies ([`Channel::copies`]).
    copies: bool,
    paused: Paused,
    /// Channels that took no place: what they were opened for is gone.
    #[expect(clippy::vec_box, reason = "a channel's address is its name, so it stays where it is")]
    discarded: Vec<Box<AnyChannel>>,
}

impl Namespaces {
    /// None yet.
    pub fn new() -> Self {
        let none = || Entry {
            view: None,
            generation: 0,
            force_ring: false,
            channel: None,
            next: None,
            opening: false,
            unpublished: false,
            shut: Shut::NOT,
            pause: 0,
            still: false,
            lost: false,
        };
        Self {
            entries: (0..MAX_NAMESPACES).map(|_| none()).collect(),
            open: Vec::with_capacity(MAX_NAMESPACES),
            copies: false,
            paused: Paused::default(),
            discarded: Vec::new(),
        }
    }

    /// A row, if it exists.
    #[inline]
    pub fn get(&self, row: usize) -> Option<&Entry> {
        self.entries.get(row)
    }

    /// The same, to be changed.
    #[inline]
    pub fn get_mut(&mut self, row: usize) -> Option<&mut Entry> {
        self.entries.get_mut(row)
    }

    /// Rows that have a channel.
    #[inline]
    pub fn open(&self) -> &[u16] {
        &self.open
    }

    /// Whether it may pay to load what requests will copy.
    #[inline]
    pub fn any_copies(&self) -> bool {
        self.copies
    }

    /// Rows of namespaces that exist.
    pub fn attached(&self) -> impl Iterator<Item = usize> + '_ {
        self.entries
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.view.is_some())
            .map(|(row, _)| row)
    }

    /// Rows of namespaces that are paused.
    pub fn paused(&self) -> Paused {
        self.paused
    }

    /// Takes in a row of the controller segment. Returns what is to be asked of the control thread.
    pub fn load(&mut self, index: usize, row: &NamespaceRow) -> Option<Request> {
        let entry = self.entries.get_mut(index)?;
        // Acquire: pairs with the Release of the frontend; the row's other fields are written.
        let attached = row.state.load(Ordering::Acquire) == 1;
        let generation = row.generation.load(Ordering::Relaxed);
        let flags = row.flags.load(Ordering::Relaxed);
        let block_shift = row.block_shift.load(Ordering::Relaxed);
        let force_ring = flags & namespace_flags::FORCE_RING != 0;
        let blocks = row.blocks.load(Ordering::Relaxed);
        // A device that grew has a new channel: the old one ends where the device ended.
        let bytes = blocks.checked_shl(block_shift).unwrap_or(u64::MAX);
        let outgrown =
            entry.channel.as_ref().is_some_and(|channel| channel.geometry().size < bytes)
                && !entry.is_retiring();
        let other_device =
            generation != entry.generation || force_ring != entry.force_ring || outgrown;
        if !attached || other_device {
            entry.set_retiring(entry.channel.is_some());
            entry.opening = false;
            // It leads to the device of before, and must not come into use for this one.
            self.discarded.extend(entry.next.take());
        }
        (entry.generation, entry.force_ring) = (generation, force_ring);
        entry.view = (attached && BLOCK_SHIFTS.contains(&block_shift)).then_some(Namespace {
            blocks: BlockCount(blocks),
            block_shift,
            write_protected: flags & namespace_flags::WRITE_PROTECTED != 0,
            formatting: flags & namespace_flags::FORMATTING != 0,
        });
        let pause = if attached { row.pause_number.load(Ordering::Relaxed) } else { 0 };
        entry.still &= pause == entry.pause;
        entry.pause = pause;
        entry.shut.set(Shut::PAUSED, entry.pause != 0);
        self.paused.set(index, entry.pause != 0);
        let wanted = entry.view.is_some() && (entry.channel.is_none() || entry.is_retiring());
        if !wanted || entry.opening {
            return None;
        }
        entry.opening = true;
        Some(Request::OpenChannel { namespace: index, generation, force_ring })
    }

    /// Whether a row's channel still has requests of a block device that the namespace has no more, or that is being
    /// formatted.
    pub fn is_draining(&self, row: usize) -> bool {
        self.entries.get(row).is_some_and(|entry| {
            let leaving = entry.is_retiring() || entry.view.is_none_or(|view| view.formatting);
            leaving && entry.channel.as_ref().is_some_and(|channel| channel.outstanding() > 0)
        })
    }

    /// Puts a channel in place, if it is the one that was asked for; one that still has requests outstanding is let
    /// finish first. Returns the channel that is not used.
    pub fn install(
        &mut self,
        row: usize,
        generation: u32,
        channel: Box<AnyChannel>,
    ) -> Option<Box<AnyChannel>> {
        let wanted = |entry: &&mut Entry| {
            entry.view.is_some() && entry.opening && entry.generation == generation
        };
        let Some(entry) = self.entries.get_mut(row).filter(wanted) else { return Some(channel) };
        entry.opening = false;
        self.copies |= channel.copies();
        if entry.channel.as_ref().is_some_and(|old| old.outstanding() > 0) {
            entry.set_retiring(true);
            return entry.next.replace(channel);
        }
        entry.set_retiring(false);
        entry.lost = false;
        let old = entry.channel.replace(channel);
        if old.is_none() {
            self.open.push(row as u16);
        }
        old
    }

    /// A row's channel is of no more use; what it has outstanding stays so. Returns the generation to ask a new channel
    /// for, if none is there or asked for.
    pub fn lose(&mut self, row: usize) -> Option<u32> {
        let entry = self.entries.get_mut(row)?;
        if let Some(channel) = entry.channel.as_deref_mut() {
            set_lost(channel);
        }
        entry.set_retiring(entry.channel.is_some());
        entry.lost = entry.channel.is_some();
        if entry.opening || entry.view.is_none() || entry.next.is_some() {
            return None;
        }
        entry.opening = true;
        Some(entry.generation)
    }

    /// What a lost channel ([`address`]) has outstanding ends with its next poll.
    pub fn end(&mut self, row: usize, channel: usize) {
        let held = self.entries.get_mut(row).and_then(|entry| entry.channel.as_deref_mut());
        if let Some(held) = held.filter(|held| address(held) == channel) {
            set_gone(held);
        }
    }

    /// Whether `channel` ([`address`]) is the one in use in this row. One that waits to take its place is discarded,
    /// and its successor is asked for by the generation that is returned beside.
    pub fn is_lost(&mut self, row: usize, channel: usize) -> (bool, Option<u32>) {
        let Some(entry) = self.entries.get_mut(row) else { return (false, None) };
        let is = |held: &Option<Box<AnyChannel>>| {
            held.as_deref().is_some_and(|held| address(held) == channel)
        };
        if is(&entry.channel) {
            return (true, None);
        }
        if !is(&entry.next) {
            return (false, None);
        }
        self.discarded.extend(entry.next.take());
        if entry.opening || entry.view.is_none() {
            return (false, None);
        }
        entry.opening = true;
        (false, Some(entry.generation))
    }

    /// Memory goes, of which nothing is in flight: channels that hold on to it let go.
    pub fn forget(&mut self, region: &Arc<Region>) {
        for &row in &self.open {
            let Some(entry) = self.entries.get_mut(usize::from(row)) else { continue };
            for channel in entry.channel.iter_mut().chain(&mut entry.next) {
                channel.forget(region);
            }
        }
    }

    /// A channel that took no place, to be closed.
    pub fn take_discarded(&mut self) -> Option<Box<AnyChannel>> {
        self.discarded.pop()
    }

    /// Takes out a channel that is retiring or gone and has nothing outstanding.
    pub fn take_finished(&mut self, row: usize) -> Option<Box<AnyChannel>> {
        let entry = self.entries.get_mut(row)?;
        let channel = entry.channel.as_ref()?;
        if channel.outstanding() > 0 || !(entry.is_retiring() || channel.is_gone()) {
            return None;
        }
        entry.set_retiring(false);
        entry.lost = false;
        let next = entry.next.take();
        if next.is_none() {
            self.open.retain(|&open| usize::from(open) != row);
            self.copies &= !self.open.is_empty();
        }
        std::mem::replace(&mut entry.channel, next)
    }
}

/// What tells a channel from all others for as long as it lives.
pub fn address(channel: &AnyChannel) -> usize {
    std::ptr::from_ref(channel).addr()
}

/// The backend is dead. What it has of a ring may still be under way; a lease of a drive knows what to wait for.
fn set_lost(channel: &mut AnyChannel) {
    match channel {
        AnyChannel::Drive(drive) => drive.set_lost(),
        AnyChannel::Fault(fault) => set_lost(fault.inner_mut()),
        AnyChannel::Null(_)
        | AnyChannel::Malloc(_)
        | AnyChannel::Ring(_)
        | AnyChannel::File(_)
        | AnyChannel::Nvme(_) => {}
    }
}

/// The backend is dead, and its requests have ended: what its ring has outstanding ends.
fn set_gone(channel: &mut AnyChannel) {
    match channel {
        AnyChannel::Ring(ring) => ring.set_gone(),
        AnyChannel::Malloc(malloc) => {
            if let Some(ring) = malloc.ring_mut() {
                ring.set_gone();
            }
        }
        AnyChannel::Drive(drive) => drive.set_gone(),
        AnyChannel::Fault(fault) => set_gone(fault.inner_mut()),
        AnyChannel::Null(_) | AnyChannel::File(_) | AnyChannel::Nvme(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bdev::channel::{Geometry, Submitted};
    use bdev::null::NullChannel;
    use bdev::request::{Op, Request as DeviceRequest};
    use ipc::guest_memory::RegionTable;
    use ipc::layout::controller::ControllerLayout;
    use ipc::segment::Segment;

    const BYTES: u64 = 1 << 20;

    /// A channel of a device of `size` bytes; what it is given takes a second.
    fn channel(size: u64) -> Box<AnyChannel> {
        let geometry = Geometry { size, read_only: false };
        Box::new(AnyChannel::Null(NullChannel::new(geometry, 1_000_000_000)))
    }

    fn occupy(namespaces: &mut Namespaces) {
        let channel = namespaces.get_mut(0).unwrap().channel.as_deref_mut().unwrap();
        let flush = DeviceRequest::new(Op::Flush, 0, 0, &[], 7);
        assert_eq!(channel.submit(&flush, &RegionTable::new(), 0), Submitted::Pending);
    }

    fn finish(namespaces: &mut Namespaces) {
        let channel = namespaces.get_mut(0).unwrap().channel.as_deref_mut().unwrap();
        assert_eq!(channel.poll(u64::MAX, &mut |_, _| {}), 1);
    }

    fn row(segment: &Segment<ControllerLayout>, generation: u32, bytes: u64) -> &NamespaceRow {
        let row = &segment.namespaces[0];
        row.generation.store(generation, Ordering::Relaxed);
        row.block_shift.store(9, Ordering::Relaxed);
        row.blocks.store(bytes >> 9, Ordering::Relaxed);
        row.state.store(1, Ordering::Release);
        row
    }

    /// A namespace whose channel is busy, and one behind it that waits for its place, as after growth.
    fn busy_and_next(segment: &Segment<ControllerLayout>) -> (Namespaces, usize) {
        let mut namespaces = Namespaces::new();
        assert!(namespaces.load(0, row(segment, 1, BYTES)).is_some());
        assert!(namespaces.install(0, 1, channel(BYTES)).is_none());
        occupy(&mut namespaces);
        assert!(namespaces.load(0, row(segment, 1, 2 * BYTES)).is_some(), "it outgrew its channel");
        let next = channel(2 * BYTES);
        let address = address(&next);
        assert!(namespaces.install(0, 1, next).is_none());
        (namespaces, address)
    }

    #[test]
    fn what_a_lost_channel_has_outstanding_ends_when_nothing_of_it_is_under_way() {
        let segment = Segment::create("test", 1).unwrap();
        let mut namespaces = Namespaces::new();
        assert!(namespaces.load(0, row(&segment, 1, BYTES)).is_some());
        let ring = bdev::ring::create_segment("test", 1, 4).unwrap();
        let geometry = Geometry { size: BYTES, read_only: false };
        let event = ipc::event::EventFd::create().unwrap();
        let ring = bdev::ring::client::RingChannel::new(ring, event, geometry).unwrap();
        let ring = Box::new(AnyChannel::Ring(ring));
        let name = address(&ring);
        assert!(namespaces.install(0, 1, ring).is_none());
        occupy(&mut namespaces);
        let poll = |namespaces: &mut Namespaces| {
            let mut ended = Vec::new();
            let channel = namespaces.get_mut(0).unwrap().channel.as_deref_mut().unwrap();
            channel.poll(0, &mut |tag, outcome| ended.push((tag, outcome)));
            ended
        };
        assert_eq!(namespaces.lose(0), Some(1), "another one is asked for");
        assert!(namespaces.get(0).unwrap().is_closed() && poll(&mut namespaces).is_empty());
        assert!(namespaces.take_finished(0).is_none());
        // Its successor is there, and waits.
        assert!(namespaces.install(0, 1, channel(BYTES)).is_none());
        namespaces.end(0, name + 1);
        assert!(poll(&mut namespaces).is_empty());
        namespaces.end(0, name);
        assert_eq!(poll(&mut namespaces), [(7, Err(bdev::request::ErrorKind::Gone))]);
        assert!(namespaces.take_finished(0).is_some());
        assert!(!namespaces.get(0).unwrap().is_closed());
    }

    #[test]
    fn waiting_channel_takes_its_place() {
        let segment = Segment::create("test", 1).unwrap();
        let (mut namespaces, next) = busy_and_next(&segment);
        assert!(namespaces.take_finished(0).is_none());
        finish(&mut namespaces);
        assert!(namespaces.take_finished(0).is_some());
        let entry = namespaces.get(0).unwrap();
        assert_eq!(entry.channel.as_deref().map(address), Some(next));
        assert!(!entry.is_retiring());
    }

    #[test]
    fn waiting_channel_of_a_removed_device_never_serves_its_successor() {
        let segment = Segment::create("test", 1).unwrap();
        let (mut namespaces, next) = busy_and_next(&segment);
        segment.namespaces[0].state.store(0, Ordering::Release);
        assert!(namespaces.load(0, &segment.namespaces[0]).is_none());
        assert!(namespaces.load(0, row(&segment, 2, BYTES)).is_some(), "another device's channel");
        assert_eq!(namespaces.take_discarded().as_deref().map(address), Some(next));
        finish(&mut namespaces);
        assert!(namespaces.take_finished(0).is_some());
        assert!(namespaces.get(0).unwrap().channel.is_none());
    }

    #[test]
    fn death_of_another_backend_leaves_the_channel() {
        let segment = Segment::create("test", 1).unwrap();
        let (mut namespaces, next) = busy_and_next(&segment);
        assert_eq!(namespaces.is_lost(0, 1), (false, None));
        assert_eq!(namespaces.get(0).unwrap().channel.as_ref().unwrap().outstanding(), 1);
        let present = address(namespaces.get(0).unwrap().channel.as_deref().unwrap());
        assert_eq!(namespaces.is_lost(0, present), (true, None));
        assert_eq!(namespaces.lose(0), None, "its successor is there");
        assert_eq!(namespaces.is_lost(0, next), (false, Some(1)), "one that waits is replaced");
        assert_eq!(namespaces.take_discarded().as_deref().map(address), Some(next));
        assert!(namespaces.take_discarded().is_none());
    }
}
