//! What every block has to hold, in memory: four bytes a block.

/// Most blocks of one ledger: 1 GiB of memory.
pub const BLOCKS_MAX: u64 = 1 << 28;

/// A write is under way, or a read that must not meet one.
const BUSY: u32 = 1 << 31;
/// A write failed: the block may hold the generation before or the one that was tried.
const UNSURE: u32 = 1 << 30;
const GENERATION: u32 = UNSURE - 1;
/// How many neighbours are tried when a block is busy.
const TRIES: u64 = 64;

/// The generations of blocks `first..first + len`.
#[derive(Debug)]
pub struct Ledger {
    first: u64,
    entries: Vec<u32>,
}

/// What is known of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// It was not written in this run.
    Unwritten,
    /// It has to hold this generation.
    Generation(u32),
    /// A write of it failed: old or new, or both in part.
    Unsure,
}

impl Ledger {
    /// Nothing was written yet. `blocks` is at most [`BLOCKS_MAX`].
    #[must_use]
    pub fn new(first: u64, blocks: u64) -> Self {
        Self { first, entries: vec![0; blocks.min(BLOCKS_MAX) as usize] }
    }

    /// Takes `block`, or the next one that is free; `None` if all those near are in use.
    pub fn claim(&mut self, block: u64) -> Option<u64> {
        let len = self.entries.len() as u64;
        let start = block.wrapping_sub(self.first);
        for step in 0..TRIES.min(len) {
            let index = (start + step) % len;
            let entry = &mut self.entries[index as usize];
            if *entry & BUSY == 0 {
                *entry |= BUSY;
                return Some(self.first + index);
            }
        }
        None
    }

    /// What a claimed or free block has to hold.
    #[must_use]
    pub fn known(&self, block: u64) -> Known {
        match self.entry(block) {
            entry if entry & UNSURE != 0 => Known::Unsure,
            entry => match entry & GENERATION {
                0 => Known::Unwritten,
                generation => Known::Generation(generation),
            },
        }
    }

    /// The generation that a write of a claimed block is to carry.
    #[must_use]
    pub fn next_generation(&self, block: u64) -> u32 {
        // Past the last one it starts again: 2^30 writes of one block are 4 TiB.
        match (self.entry(block) + 1) & GENERATION {
            0 => 1,
            generation => generation,
        }
    }

    /// A claimed block was written.
    pub fn written(&mut self, block: u64) {
        let generation = self.next_generation(block);
        self.set(block, generation);
    }

    /// A write of a claimed block failed.
    pub fn failed(&mut self, block: u64) {
        // The generation that was tried is not used again.
        let generation = self.next_generation(block);
        self.set(block, generation | UNSURE);
    }

    /// A claimed block was only read.
    pub fn release(&mut self, block: u64) {
        let entry = self.entry(block);
        self.set(block, entry & !BUSY);
    }

    /// Every block that is to be looked at in the end: those written, and with `all` the others too.
    pub fn sweep(&self, all: bool) -> impl Iterator<Item = u64> + '_ {
        let wanted = move |entry: u32| all || entry & GENERATION != 0;
        let entries = self.entries.iter().enumerate();
        entries
            .filter(move |&(_, &entry)| wanted(entry))
            .map(|(index, _)| self.first + index as u64)
    }

    /// Blocks there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn entry(&self, block: u64) -> u32 {
        self.entries.get(block.wrapping_sub(self.first) as usize).copied().unwrap_or(0)
    }

    fn set(&mut self, block: u64, value: u32) {
        if let Some(entry) = self.entries.get_mut(block.wrapping_sub(self.first) as usize) {
            *entry = value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_claimed_once_and_its_neighbour_taken_instead() {
        let mut ledger = Ledger::new(100, 3);
        assert_eq!(ledger.claim(101), Some(101));
        assert_eq!(ledger.claim(101), Some(102));
        assert_eq!(ledger.claim(101), Some(100));
        assert_eq!(ledger.claim(101), None);
        ledger.release(102);
        assert_eq!(ledger.claim(100), Some(102));
    }

    #[test]
    fn generations_count_the_writes_that_were_completed() {
        let mut ledger = Ledger::new(0, 2);
        assert_eq!(ledger.known(0), Known::Unwritten);
        for generation in 1..4 {
            ledger.claim(0);
            assert_eq!(ledger.next_generation(0), generation);
            ledger.written(0);
            assert_eq!(ledger.known(0), Known::Generation(generation));
        }
        ledger.claim(0);
        ledger.failed(0);
        assert_eq!(ledger.known(0), Known::Unsure);
        ledger.claim(0);
        ledger.written(0);
        assert_eq!(ledger.known(0), Known::Generation(5), "the failed one's is not used again");
    }

    #[test]
    fn the_sweep_visits_what_was_written_or_everything() {
        let mut ledger = Ledger::new(10, 4);
        ledger.claim(12);
        ledger.written(12);
        assert_eq!(ledger.sweep(false).collect::<Vec<_>>(), [12]);
        assert_eq!(ledger.sweep(true).count(), 4);
    }
}
