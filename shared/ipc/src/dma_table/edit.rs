//! Changes of one leaf or of the root, in steps that can be taken up anywhere: the intent is written first, the cursor
//! follows the shift, and a row is never overwritten before its copy is complete.

use super::{DmaError, DmaTable, EditIntent, LEAF_ROWS, LEAVES, Leaf, Root};
use std::sync::atomic::{AtomicU64, Ordering};

/// Values of `EditIntent::kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum Kind {
    /// A row comes into a leaf.
    InsertRow = 1,
    /// Rows leave a leaf.
    RemoveRows = 2,
    /// A leaf comes into the root; the row's first two words are its first address and its index.
    InsertLeaf = 3,
    /// Leaves leave the root.
    RemoveLeaves = 4,
}

/// An array of rows that one generation guards.
struct Rows<'a> {
    generation: &'a AtomicU64,
    count: &'a AtomicU64,
    capacity: usize,
    table: &'a DmaTable,
    leaf: Option<usize>,
}

impl Rows<'_> {
    /// The words of the row at `at`; unused ones are the first again.
    fn words(&self, at: usize) -> [&AtomicU64; 4] {
        match self.leaf {
            Some(leaf) => {
                let leaf = &self.table.leaves[leaf];
                let body = &leaf.rows[at];
                [&leaf.starts[at], &body.size, &body.offset, &body.target]
            }
            None => {
                let root = &self.table.root;
                let first = &root.firsts[at];
                [first, &root.leaves[at], first, first]
            }
        }
    }

    fn used(&self) -> usize {
        if self.leaf.is_some() { 4 } else { 2 }
    }

    fn copy(&self, to: usize, from: usize) {
        let (to, from) = (self.words(to), self.words(from));
        for (to, from) in to.iter().zip(from).take(self.used()) {
            put(to, from.load(Ordering::Relaxed));
        }
    }
}

/// A store of the writer. Release on all of them: none overtakes an earlier one, so what a crash leaves behind is a
/// prefix of them; and it pairs with the Acquire fence of `DmaTable::attempt`.
#[inline]
pub(super) fn put(word: &AtomicU64, value: u64) {
    #[cfg(test)]
    super::tests::crash::step();
    word.store(value, Ordering::Release);
}

impl DmaTable {
    /// Puts a row into `leaf` at `position`.
    pub(super) fn insert_row(&self, leaf: usize, position: usize, row: [u64; 4]) {
        self.start(Kind::InsertRow, leaf, position, 1, row);
    }

    /// Takes `amount` rows out of `leaf`.
    pub(super) fn remove_rows(&self, leaf: usize, position: usize, amount: usize) {
        self.start(Kind::RemoveRows, leaf, position, amount, [0; 4]);
    }

    /// Puts a leaf into the root.
    pub(super) fn insert_leaf(&self, position: usize, first: u64, leaf: usize) {
        self.start(Kind::InsertLeaf, 0, position, 1, [first, leaf as u64, 0, 0]);
    }

    /// Takes `amount` leaves out of the root.
    pub(super) fn remove_leaves(&self, position: usize, amount: usize) {
        self.start(Kind::RemoveLeaves, 0, position, amount, [0; 4]);
    }

    /// Finishes the change that a writer left behind.
    pub(super) fn finish_edit(&self) -> Result<(), DmaError> {
        match self.edit.kind.load(Ordering::Acquire) {
            0 => Ok(()),
            1 => self.run(Kind::InsertRow),
            2 => self.run(Kind::RemoveRows),
            3 => self.run(Kind::InsertLeaf),
            4 => self.run(Kind::RemoveLeaves),
            _ => Err(DmaError::Corrupt("unknown change")),
        }
    }

    fn start(&self, kind: Kind, leaf: usize, position: usize, amount: usize, row: [u64; 4]) {
        let rows = self.rows(kind, leaf);
        let count = rows.count.load(Ordering::Relaxed);
        let EditIntent { kind: kind_word, row: row_words, .. } = &self.edit;
        put(&self.edit.leaf, leaf as u64);
        put(&self.edit.position, position as u64);
        put(&self.edit.amount, amount as u64);
        put(&self.edit.count, count);
        let inserts = matches!(kind, Kind::InsertRow | Kind::InsertLeaf);
        put(&self.edit.cursor, if inserts { count } else { position as u64 });
        for (word, value) in row_words.iter().zip(row) {
            put(word, value);
        }
        put(kind_word, kind as u64);
        let done = self.run(kind);
        debug_assert!(done.is_ok(), "the writer bounds what it asks for: {done:?}");
    }

    fn rows(&self, kind: Kind, leaf: usize) -> Rows<'_> {
        match kind {
            Kind::InsertRow | Kind::RemoveRows => {
                let Leaf { generation, count, .. } = &self.leaves[leaf];
                Rows { generation, count, capacity: LEAF_ROWS, table: self, leaf: Some(leaf) }
            }
            Kind::InsertLeaf | Kind::RemoveLeaves => {
                let Root { generation, count, .. } = &self.root;
                Rows { generation, count, capacity: LEAVES, table: self, leaf: None }
            }
        }
    }

    /// Carries the written intent out from its cursor on. Running it again once it is done changes nothing.
    fn run(&self, kind: Kind) -> Result<(), DmaError> {
        let load =
            |word: &AtomicU64| word.load(Ordering::Relaxed).min(u64::from(u32::MAX)) as usize;
        let (leaf, position) = (load(&self.edit.leaf), load(&self.edit.position));
        let (amount, count) = (load(&self.edit.amount), load(&self.edit.count));
        let mut cursor = load(&self.edit.cursor);
        if leaf >= LEAVES {
            return Err(DmaError::Corrupt("leaf of a change"));
        }
        let rows = self.rows(kind, leaf);
        let inserts = matches!(kind, Kind::InsertRow | Kind::InsertLeaf);
        let bounds = match inserts {
            true => amount == 1 && count < rows.capacity && position <= count && cursor <= count,
            false => count <= rows.capacity && position + amount <= count && cursor < count,
        };
        if !bounds || cursor < position {
            return Err(DmaError::Corrupt("bounds of a change"));
        }
        let odd = rows.generation.load(Ordering::Relaxed) | 1;
        put(rows.generation, odd);
        if inserts {
            while cursor > position {
                rows.copy(cursor, cursor - 1);
                cursor -= 1;
                put(&self.edit.cursor, cursor as u64);
            }
            let words = rows.words(position);
            for (word, value) in words.iter().zip(&self.edit.row).take(rows.used()) {
                put(word, value.load(Ordering::Relaxed));
            }
            put(rows.count, count as u64 + 1);
        } else {
            while cursor + amount < count {
                rows.copy(cursor, cursor + amount);
                cursor += 1;
                put(&self.edit.cursor, cursor as u64);
            }
            put(rows.count, (count - amount) as u64);
        }
        put(rows.generation, odd.wrapping_add(1));
        put(&self.edit.kind, 0);
        Ok(())
    }
}
