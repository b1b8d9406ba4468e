//! What keeps commands from a channel that is there.

use ipc::layout::MAX_NAMESPACES;

/// Why a channel takes no new command, as bits, so that the hot path asks once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shut(u8);

impl Shut {
    /// It takes them.
    pub const NOT: Self = Self(0);
    /// It belongs to a block device that is no longer the namespace's: it goes when nothing is outstanding.
    pub(super) const RETIRING: u8 = 1;
    /// The namespace is paused.
    pub(super) const PAUSED: u8 = 2;

    pub(super) fn has(self, bit: u8) -> bool {
        self.0 & bit != 0
    }

    pub(super) fn set(&mut self, bit: u8, on: bool) {
        self.0 = if on { self.0 | bit } else { self.0 & !bit };
    }
}

/// Rows of namespaces that are paused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paused([u64; MAX_NAMESPACES / 64]);

impl Paused {
    /// Whether that one is.
    pub fn has(&self, row: usize) -> bool {
        self.0.get(row / 64).is_some_and(|word| word >> (row % 64) & 1 == 1)
    }

    /// Whether any is.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }

    /// All of them.
    pub fn rows(self) -> impl Iterator<Item = usize> {
        (0..MAX_NAMESPACES).filter(move |&row| self.has(row))
    }

    pub(super) fn set(&mut self, row: usize, on: bool) {
        if let Some(word) = self.0.get_mut(row / 64) {
            let bit = 1 << (row % 64);
            *word = if on { *word | bit } else { *word & !bit };
        }
    }
}
