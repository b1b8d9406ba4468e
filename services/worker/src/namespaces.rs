//! Namespaces of one controller as this worker sees them, and the channels to their block devices. On the hot path.

use crate::controller::Request;
use bdev::channel::{AnyChannel, Channel};
use ipc::layout::MAX_NAMESPACES;
use ipc::layout::controller::{NamespaceRow, namespace_flags};
use nvme::nvm::Namespace;
use nvme_spec::BlockCount;
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
    /// The channel belongs to a block device that is no longer the namespace's: it goes when nothing is outstanding.
    pub retiring: bool,
}

/// All namespaces of a controller, by row.
pub struct Namespaces {
    entries: Vec<Entry>,
    /// Rows that have a channel.
    open: Vec<u16>,
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
            retiring: false,
        };
        Self {
            entries: (0..MAX_NAMESPACES).map(|_| none()).collect(),
            open: Vec::with_capacity(MAX_NAMESPACES),
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

    /// Rows of namespaces that exist.
    pub fn attached(&self) -> impl Iterator<Item = usize> + '_ {
        self.entries
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.view.is_some())
            .map(|(row, _)| row)
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
                && !entry.retiring;
        let other_device =
            generation != entry.generation || force_ring != entry.force_ring || outgrown;
        if !attached || other_device {
            entry.retiring = entry.channel.is_some();
            entry.opening = false;
        }
        (entry.generation, entry.force_ring) = (generation, force_ring);
        entry.view = (attached && BLOCK_SHIFTS.contains(&block_shift)).then_some(Namespace {
            blocks: BlockCount(blocks),
            block_shift,
            write_protected: flags & namespace_flags::WRITE_PROTECTED != 0,
            formatting: flags & namespace_flags::FORMATTING != 0,
        });
        let wanted = entry.view.is_some() && (entry.channel.is_none() || entry.retiring);
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
            let leaving = entry.retiring || entry.view.is_none_or(|view| view.formatting);
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
        if entry.channel.as_ref().is_some_and(|old| old.outstanding() > 0) {
            entry.retiring = true;
            return entry.next.replace(channel);
        }
        entry.retiring = false;
        let old = entry.channel.replace(channel);
        if old.is_none() {
            self.open.push(row as u16);
        }
        old
    }

    /// The backend of a row's channel is gone. Returns the generation to ask a new channel for, if that has not been
    /// done.
    pub fn lose(&mut self, row: usize) -> Option<u32> {
        let entry = self.entries.get_mut(row)?;
        if let Some(channel) = entry.channel.as_deref_mut() {
            set_gone(channel);
        }
        entry.retiring = entry.channel.is_some();
        if entry.opening || entry.view.is_none() {
            return None;
        }
        entry.opening = true;
        Some(entry.generation)
    }

    /// Takes out a channel that is retiring or gone and has nothing outstanding.
    pub fn take_finished(&mut self, row: usize) -> Option<Box<AnyChannel>> {
        let entry = self.entries.get_mut(row)?;
        let channel = entry.channel.as_ref()?;
        if channel.outstanding() > 0 || !(entry.retiring || channel.is_gone()) {
            return None;
        }
        entry.retiring = false;
        let next = entry.next.take();
        if next.is_none() {
            self.open.retain(|&open| usize::from(open) != row);
        }
        std::mem::replace(&mut entry.channel, next)
    }
}

/// The backend is dead: what its ring has outstanding ends.
fn set_gone(channel: &mut AnyChannel) {
    match channel {
        AnyChannel::Ring(ring) => ring.set_gone(),
        AnyChannel::Malloc(malloc) => {
            if let Some(ring) = malloc.ring_mut() {
                ring.set_gone();
            }
        }
        AnyChannel::Fault(fault) => set_gone(fault.inner_mut()),
        AnyChannel::Null(_) | AnyChannel::File(_) => {}
    }
}
