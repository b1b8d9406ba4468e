//! A ring between a worker and a backend: requests one way, completions the other, in one channel segment.
//!
//! [`client`] is the worker's channel, [`server`] the backend's end of it, [`entry`] the words that both write and
//! read. Nothing that the other side wrote is trusted: what cannot be is a corrupt ring, and a corrupt ring is given up
//! as if its peer had died.

pub mod client;
pub mod entry;
pub mod server;

use crate::error::{Error, ErrorKind};
use ipc::layout::channel::{ChannelLayout, MAX_CHANNEL_DEPTH};
use ipc::segment::Segment;
use std::sync::atomic::Ordering;

/// Makes a channel segment for `depth` outstanding requests, a power of two of at most 256.
///
/// # Errors
/// [`ErrorKind::Invalid`] for another depth; what the kernel says if there is no memory.
pub fn create_segment(name: &str, id: u128, depth: usize) -> Result<Segment<ChannelLayout>, Error> {
    if !depth.is_power_of_two() || depth > MAX_CHANNEL_DEPTH {
        return Err(Error::new(ErrorKind::Invalid, format!("channel depth {depth}")));
    }
    let segment = Segment::<ChannelLayout>::create(name, id).map_err(|source| Error {
        kind: ErrorKind::Busy,
        what: format!("make channel segment {name}"),
        source: Some(Box::new(source)),
    })?;
    // Relaxed: the descriptor is handed over after this, by a system call.
    segment.depth.store(depth as u32, Ordering::Relaxed);
    Ok(segment)
}

/// Reads a segment's depth, once.
fn depth_of(segment: &ChannelLayout) -> Result<usize, Error> {
    let depth = segment.depth.load(Ordering::Relaxed) as usize;
    if depth.is_power_of_two() && depth <= MAX_CHANNEL_DEPTH {
        Ok(depth)
    } else {
        Err(Error::new(ErrorKind::Invalid, format!("channel segment of depth {depth}")))
    }
}

/// One bit per slot.
#[derive(Clone, Copy, Debug, Default)]
struct SlotSet([u64; MAX_CHANNEL_DEPTH / 64]);

impl SlotSet {
    /// Adds a slot; `false` if it was in already or does not exist.
    #[inline]
    fn insert(&mut self, slot: usize) -> bool {
        match self.0.get_mut(slot / 64) {
            Some(word) if *word & (1 << (slot % 64)) == 0 => {
                *word |= 1 << (slot % 64);
                true
            }
            _ => false,
        }
    }

    /// Takes a slot out; `false` if it was not in.
    #[inline]
    fn remove(&mut self, slot: usize) -> bool {
        match self.0.get_mut(slot / 64) {
            Some(word) if *word & (1 << (slot % 64)) != 0 => {
                *word &= !(1 << (slot % 64));
                true
            }
            _ => false,
        }
    }

    /// Whether a slot is in the set.
    #[inline]
    fn contains(&self, slot: usize) -> bool {
        self.0.get(slot / 64).is_some_and(|word| word & (1 << (slot % 64)) != 0)
    }

    /// Slots in the set.
    #[inline]
    fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Takes the lowest slot out.
    fn pop(&mut self) -> Option<usize> {
        let (index, word) = self.0.iter_mut().enumerate().find(|(_, word)| **word != 0)?;
        let bit = word.trailing_zeros() as usize;
        *word &= *word - 1;
        Some(index * 64 + bit)
    }
}
