//! Position of a submission queue. NVMe Base 2.0c 3.3.1.

use super::InvalidDoorbell;

/// How far a submission queue was fetched.
#[derive(Clone, Debug)]
pub struct SubmissionQueue {
    entries: u32,
    head: u32,
    fetched: u64,
}

impl SubmissionQueue {
    /// A queue of `entries`, at least 2, of which `fetched` were fetched since its creation.
    pub fn new(entries: u32, fetched: u64) -> Self {
        let entries = entries.max(2);
        Self { entries, head: (fetched % u64::from(entries)) as u32, fetched }
    }

    /// Entries of the queue.
    #[inline]
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// Index of the next entry to fetch, what SQHD of a completion says.
    #[inline]
    pub fn head(&self) -> u32 {
        self.head
    }

    /// Entries fetched since the queue's creation.
    #[inline]
    pub fn fetched(&self) -> u64 {
        self.fetched
    }

    /// Entries between head and the tail that the host rang.
    ///
    /// # Errors
    /// For a tail past the queue's size.
    #[inline]
    pub fn available(&self, tail: u32) -> Result<u32, InvalidDoorbell> {
        if tail >= self.entries {
            return Err(InvalidDoorbell(tail));
        }
        Ok(if tail >= self.head { tail - self.head } else { tail + self.entries - self.head })
    }

    /// Index of the entry `ahead` of the head, with `ahead` below the number of entries.
    #[inline]
    pub fn index(&self, ahead: u32) -> u32 {
        let index = self.head + ahead;
        if index >= self.entries { index - self.entries } else { index }
    }

    /// Counts `count` entries as fetched, at most what [`Self::available`] said.
    #[inline]
    pub fn advance(&mut self, count: u32) {
        self.head = self.index(count);
        self.fetched += u64::from(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_and_counter_agree_over_wraps() {
        let mut queue = SubmissionQueue::new(5, 0);
        for step in [1, 4, 0, 3, 4, 4, 2] {
            let tail = (queue.head() + step) % 5;
            assert_eq!(queue.available(tail), Ok(step));
            queue.advance(step);
            assert_eq!(u64::from(queue.head()), queue.fetched() % 5);
        }
        assert_eq!(SubmissionQueue::new(5, queue.fetched()).head(), queue.head());
    }

    #[test]
    fn tail_past_the_size_is_refused() {
        let queue = SubmissionQueue::new(2, 0);
        assert_eq!(queue.available(1), Ok(1));
        assert_eq!(queue.available(2), Err(InvalidDoorbell(2)));
        assert_eq!(queue.available(u32::MAX), Err(InvalidDoorbell(u32::MAX)));
    }
}
