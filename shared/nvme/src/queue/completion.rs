//! Position of a completion queue. NVMe Base 2.0c 3.3.1.
//!
//! An entry is reserved before the command that will fill it is fetched, so a full queue loses no completion: its
//! commands stay where they are.

use super::InvalidDoorbell;

/// How far a completion queue was filled, promised and reaped.
#[derive(Clone, Debug)]
pub struct CompletionQueue {
    entries: u32,
    /// Entries that commands in flight will fill.
    reserved: u32,
    /// Index of the next entry to write, and the phase it gets.
    index: u32,
    phase: bool,
    posted: u64,
    /// Last head doorbell, and what it amounts to since the queue's creation.
    head: u32,
    reaped: u64,
}

/// Where a completion goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Number of entries posted before it since the queue's creation.
    pub counter: u64,
    /// Index of the entry.
    pub index: u32,
    /// Phase tag of the entry.
    pub phase: bool,
}

impl CompletionQueue {
    /// A new queue of `entries`, at least 2.
    pub fn new(entries: u32) -> Self {
        let entries = entries.max(2);
        Self { entries, reserved: 0, index: 0, phase: true, posted: 0, head: 0, reaped: 0 }
    }

    /// Entries of the queue.
    #[inline]
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// Entries posted since the queue's creation.
    #[inline]
    pub fn posted(&self) -> u64 {
        self.posted
    }

    /// Entries that the host has reaped since the queue's creation, as far as [`Self::observe`] saw.
    #[inline]
    pub fn reaped(&self) -> u64 {
        self.reaped
    }

    /// Last head doorbell that was observed.
    #[inline]
    pub fn head(&self) -> u32 {
        self.head
    }

    /// Entries that can be reserved: all but one, less what is posted and not reaped, less what is reserved already.
    #[inline]
    pub fn room(&self) -> u32 {
        self.entries - 1 - (self.posted - self.reaped) as u32 - self.reserved
    }

    /// Whether the host has reaped all that was posted.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.posted == self.reaped
    }

    /// Takes in a head doorbell; true if it moved.
    ///
    /// # Errors
    /// For a head past the queue's size or past what was posted. Nothing changes then.
    #[inline]
    pub fn observe(&mut self, head: u32) -> Result<bool, InvalidDoorbell> {
        if head == self.head {
            return Ok(false);
        }
        if head >= self.entries {
            return Err(InvalidDoorbell(head));
        }
        let step =
            if head > self.head { head - self.head } else { head + self.entries - self.head };
        if u64::from(step) > self.posted - self.reaped {
            return Err(InvalidDoorbell(head));
        }
        self.head = head;
        self.reaped += u64::from(step);
        Ok(true)
    }

    /// Reserves `count` entries, at most [`Self::room`].
    #[inline]
    pub fn reserve(&mut self, count: u32) {
        debug_assert!(count <= self.room());
        self.reserved += count;
    }

    /// Gives back `count` reserved entries that no completion will need.
    #[inline]
    pub fn release(&mut self, count: u32) {
        debug_assert!(count <= self.reserved);
        self.reserved = self.reserved.saturating_sub(count);
    }

    /// Turns a reserved entry into the next position. The caller writes the entry, then publishes
    /// [`Self::posted`].
    #[inline]
    pub fn post(&mut self) -> Position {
        debug_assert!(self.reserved > 0);
        self.reserved = self.reserved.saturating_sub(1);
        let position = Position { counter: self.posted, index: self.index, phase: self.phase };
        self.posted += 1;
        self.index += 1;
        if self.index == self.entries {
            self.index = 0;
            self.phase = !self.phase;
        }
        position
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phase_inverts_with_each_pass() {
        let mut queue = CompletionQueue::new(3);
        for counter in 0..20_u64 {
            queue.reserve(1);
            let position = queue.post();
            assert_eq!(position.counter, counter);
            assert_eq!(u64::from(position.index), counter % 3);
            assert_eq!(position.phase, (counter / 3) % 2 == 0);
            assert_eq!(queue.observe(((counter + 1) % 3) as u32), Ok(true));
            assert!(queue.is_empty());
        }
    }

    #[test]
    fn full_queue_has_no_room_until_reaped() {
        let mut queue = CompletionQueue::new(4);
        assert_eq!(queue.room(), 3);
        queue.reserve(2);
        queue.post();
        assert_eq!(queue.room(), 1);
        queue.reserve(1);
        assert_eq!(queue.room(), 0);
        assert_eq!(queue.observe(1), Ok(true));
        assert_eq!(queue.room(), 1);
        queue.release(1);
        assert_eq!(queue.room(), 2);
    }

    #[test]
    fn head_past_what_was_posted_is_refused() {
        let mut queue = CompletionQueue::new(4);
        queue.reserve(1);
        queue.post();
        assert_eq!(queue.observe(2), Err(InvalidDoorbell(2)));
        assert_eq!(queue.observe(4), Err(InvalidDoorbell(4)));
        assert_eq!(queue.reaped(), 0);
        assert_eq!(queue.observe(1), Ok(true));
        assert_eq!(queue.observe(1), Ok(false));
        assert_eq!(queue.observe(0), Err(InvalidDoorbell(0)), "it would reap three more");
    }
}
