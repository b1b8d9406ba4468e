//! What a lane checks of what it reads, and what it writes down of what it wrote.

use nvme_driver::DmaBuffer;

use super::address::Access;
use super::lane::{Geometry, NOTES_MAX};
use super::verify::ledger::Known;
use super::verify::{Damage, Ledger, Verdict, Verifier};

/// What checking came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checked {
    /// I/Os whose data is as it has to be.
    pub good: u64,
    /// I/Os of which nothing is known.
    pub unknown: u64,
    /// Lost writes.
    pub lost: u64,
    /// Torn writes.
    pub torn: u64,
    /// Misplaced writes.
    pub misplaced: u64,
    /// Data that was never written.
    pub corrupt: u64,
}

/// Checking, if it was asked for.
#[derive(Debug)]
pub struct Checking {
    verifier: Verifier,
    /// Absent with patterns that only read.
    pub(super) ledger: Option<Ledger>,
    scratch: Vec<u8>,
    pub(super) sweep_all: bool,
    /// What it came to.
    pub checked: Checked,
    /// Where the first damage is.
    pub notes: Vec<String>,
}

impl Checking {
    /// Checks with a ledger if anything is written.
    #[must_use]
    pub fn new(
        verifier: Verifier,
        ledger: Option<Ledger>,
        block_size: usize,
        sweep_all: bool,
    ) -> Self {
        Self {
            verifier,
            ledger,
            scratch: vec![0; block_size],
            sweep_all,
            checked: Checked::default(),
            notes: Vec::new(),
        }
    }

    /// Takes a block that no other I/O uses and fills the buffer of a write. `false`: there is none near.
    pub(super) fn prepare(
        &mut self,
        access: &mut Access,
        buffer: &mut DmaBuffer,
        geometry: Geometry,
    ) -> bool {
        let Some(ledger) = &mut self.ledger else { return true };
        let Some(block) = ledger.claim(access.block) else { return false };
        access.block = block;
        if access.write {
            let generation = ledger.next_generation(block);
            self.verifier.fill(&mut self.scratch, geometry.lba(block), generation);
            buffer.copy_from(&self.scratch);
        }
        true
    }

    pub(super) fn unclaim(&mut self, access: Access) {
        if let Some(ledger) = &mut self.ledger {
            ledger.release(access.block);
        }
    }

    pub(super) fn finish(&mut self, access: Access, good: bool) {
        let Some(ledger) = &mut self.ledger else { return };
        match (access.write, good) {
            (true, true) => ledger.written(access.block),
            (true, false) => ledger.failed(access.block),
            (false, _) => ledger.release(access.block),
        }
    }

    pub(super) fn judge(&mut self, block: u64, buffer: &DmaBuffer, geometry: Geometry) {
        let generation = match self.ledger.as_ref().map(|ledger| ledger.known(block)) {
            None | Some(Known::Unwritten) => None,
            Some(Known::Generation(generation)) => Some(generation),
            Some(Known::Unsure) => {
                self.checked.unknown += 1;
                return;
            }
        };
        buffer.copy_to(&mut self.scratch);
        let lba = geometry.lba(block);
        match self.verifier.check(&self.scratch, lba, generation) {
            Verdict::Good => self.checked.good += 1,
            Verdict::Unknown => self.checked.unknown += 1,
            Verdict::Bad(damage) => self.damaged(damage, lba, generation),
        }
    }

    #[cold]
    fn damaged(&mut self, damage: Damage, lba: u64, generation: Option<u32>) {
        match damage {
            Damage::Lost => self.checked.lost += 1,
            Damage::Torn => self.checked.torn += 1,
            Damage::Misplaced => self.checked.misplaced += 1,
            Damage::Corrupt => self.checked.corrupt += 1,
        }
        if self.notes.len() < NOTES_MAX {
            let expected = match generation {
                Some(generation) => format!(" (write number {generation} of it was completed)"),
                None => String::new(),
            };
            self.notes.push(format!("{} at block {lba}{expected}", damage.name()));
        }
    }
}

impl Checked {
    /// I/Os with damage.
    #[must_use]
    pub fn damaged(&self) -> u64 {
        self.lost + self.torn + self.misplaced + self.corrupt
    }

    /// Adds another lane's.
    pub fn add(&mut self, other: &Self) {
        self.good += other.good;
        self.unknown += other.unknown;
        self.lost += other.lost;
        self.torn += other.torn;
        self.misplaced += other.misplaced;
        self.corrupt += other.corrupt;
    }
}
