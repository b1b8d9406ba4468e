//! A ring with one producer and one consumer in shared memory. On the hot path.
//!
//! An entry is `N` words. Positions are counters of 32 bits that run on over the end; an entry's slot is the position
//! modulo the depth, a power of two. Each side keeps its own position privately and publishes it once per batch; it
//! loads the peer's once per batch and checks it: a position that an honest peer cannot have reached is
//! [`RingError::Corrupt`], and the caller gives the channel up. What an entry says is the caller's to check.
//!
//! Sleeping: the consumer raises its parking flag, then looks once more; the producer publishes, then looks at the
//! flag. A full fence on either side between its store and its load (Dekker) makes sure that one sees the other.
//! `--cfg loom` puts loom's atomics in place, and the tests at the end are its models.

use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};

/// Why a ring cannot be used any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The peer's position is one that it cannot have.
    #[error("ring position {found} of the peer is out of reach of {own}")]
    Corrupt {
        /// The peer's position.
        found: u32,
        /// Our own.
        own: u32,
    },
}

/// One word on two cache lines of its own (the prefetcher of some processors fetches pairs).
#[repr(C, align(128))]
#[derive(Debug)]
pub struct Padded(AtomicU32);

/// Positions and the parking flag of one ring. Zero is the initial state.
#[repr(C)]
#[derive(Debug)]
pub struct RingControl {
    /// Position of the next entry to be produced.
    tail: Padded,
    /// Position of the next entry to be consumed.
    head: Padded,
    /// 1 while the consumer sleeps or is about to.
    parked: Padded,
}

/// One entry of `N` words.
#[repr(C)]
#[derive(Debug)]
pub struct RingEntry<const N: usize>([AtomicU64; N]);

/// A ring as it lies in memory: its control words and its entries.
#[derive(Clone, Copy)]
pub struct RingView<'a, const N: usize> {
    /// Positions.
    pub control: &'a RingControl,
    /// Entries; a power of two of them.
    pub entries: &'a [RingEntry<N>],
}

impl<'a, const N: usize> RingView<'a, N> {
    /// The ring of the first `depth` of `entries`; `None` unless `depth` is a power of two and there are as many.
    pub fn new(
        control: &'a RingControl,
        entries: &'a [RingEntry<N>],
        depth: usize,
    ) -> Option<Self> {
        let usable = depth.is_power_of_two() && depth <= 1 << 16;
        usable.then(|| entries.get(..depth)).flatten().map(|entries| Self { control, entries })
    }

    fn depth(&self) -> u32 {
        self.entries.len() as u32
    }

    #[inline]
    fn entry(&self, position: u32) -> &'a RingEntry<N> {
        // In range for any position: the depth is a power of two, at least 1 (RingView::new).
        &self.entries[position as usize & (self.entries.len() - 1)]
    }
}

/// The producing side's private state.
#[derive(Debug, Default)]
pub struct Producer {
    tail: u32,
    published: u32,
    head: u32,
}

impl Producer {
    /// How many more entries fit; looks at the consumer's position when none does by what is known.
    #[inline]
    pub fn room<const N: usize>(&mut self, ring: RingView<'_, N>) -> Result<u32, RingError> {
        let depth = ring.depth();
        if self.tail.wrapping_sub(self.head) >= depth {
            // Acquire: pairs with the Release in Consumer::release; the consumer has read what we overwrite.
            let found = ring.control.head.0.load(Ordering::Acquire);
            if self.published.wrapping_sub(found) > depth {
                return Err(RingError::Corrupt { found, own: self.published });
            }
            self.head = found;
        }
        Ok(depth.saturating_sub(self.tail.wrapping_sub(self.head)))
    }

    /// Writes an entry; `false` if the ring is full. It is not visible before [`Producer::publish`].
    #[inline]
    pub fn push<const N: usize>(
        &mut self,
        ring: RingView<'_, N>,
        words: [u64; N],
    ) -> Result<bool, RingError> {
        if self.room(ring)? == 0 {
            return Ok(false);
        }
        for (slot, word) in ring.entry(self.tail).0.iter().zip(words) {
            slot.store(word, Ordering::Relaxed);
        }
        self.tail = self.tail.wrapping_add(1);
        Ok(true)
    }

    /// Makes the entries visible. `true`: the consumer is parked and this side took the flag down, so signal its event.
    #[inline]
    #[must_use]
    pub fn publish<const N: usize>(&mut self, ring: RingView<'_, N>) -> bool {
        if self.published == self.tail {
            return false;
        }
        self.published = self.tail;
        // Release: pairs with the Acquire in Consumer::available.
        ring.control.tail.0.store(self.tail, Ordering::Release);
        // Pairs with the fence in Consumer::park: either it sees the tail, or we see the flag.
        fence(Ordering::SeqCst);
        ring.control.parked.0.load(Ordering::Relaxed) != 0
            && ring.control.parked.0.swap(0, Ordering::Relaxed) != 0
    }

    /// Entries pushed and not yet published.
    pub fn unpublished(&self) -> u32 {
        self.tail.wrapping_sub(self.published)
    }
}

/// The consuming side's private state.
#[derive(Debug, Default)]
pub struct Consumer {
    head: u32,
    published: u32,
    tail: u32,
}

impl Consumer {
    /// How many entries can be taken; looks at the producer's position when none can by what is known.
    #[inline]
    pub fn available<const N: usize>(&mut self, ring: RingView<'_, N>) -> Result<u32, RingError> {
        if self.tail == self.head {
            // Acquire: pairs with the Release in Producer::publish; entries before the tail are there.
            let found = ring.control.tail.0.load(Ordering::Acquire);
            if found.wrapping_sub(self.head) > ring.depth() {
                return Err(RingError::Corrupt { found, own: self.head });
            }
            self.tail = found;
        }
        Ok(self.tail.wrapping_sub(self.head))
    }

    /// Copies the next entry out, if there is one. Its slot is not given back before [`Consumer::release`].
    #[inline]
    pub fn pop<const N: usize>(
        &mut self,
        ring: RingView<'_, N>,
    ) -> Result<Option<[u64; N]>, RingError> {
        if self.available(ring)? == 0 {
            return Ok(None);
        }
        let entry = ring.entry(self.head);
        let words = std::array::from_fn(|index| entry.0[index].load(Ordering::Relaxed));
        self.head = self.head.wrapping_add(1);
        Ok(Some(words))
    }

    /// Gives the slots of popped entries back to the producer.
    #[inline]
    pub fn release<const N: usize>(&mut self, ring: RingView<'_, N>) {
        if self.published != self.head {
            self.published = self.head;
            // Release: pairs with the Acquire in Producer::room; our reads of the slots are over.
            ring.control.head.0.store(self.head, Ordering::Release);
        }
    }

    /// Raises the parking flag and looks once more. `true`: the ring is empty, and whoever publishes next will signal.
    /// `false`: there is something (or the ring is corrupt, which [`Consumer::pop`] will tell); the flag is down again.
    #[must_use]
    pub fn park<const N: usize>(&mut self, ring: RingView<'_, N>) -> bool {
        ring.control.parked.0.store(1, Ordering::Relaxed);
        // Pairs with the fence in Producer::publish.
        fence(Ordering::SeqCst);
        let empty = matches!(self.available(ring), Ok(0));
        if !empty {
            self.unpark(ring);
        }
        empty
    }

    /// Takes the parking flag down. A signal may still be on its way; it is harmless.
    pub fn unpark<const N: usize>(&self, ring: RingView<'_, N>) {
        ring.control.parked.0.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
