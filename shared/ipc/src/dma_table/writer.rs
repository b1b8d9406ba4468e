//! The one writer of a DMA table.

use super::edit::put;
use super::upper_bound;
use super::{DmaError, DmaRow, DmaTable, LEAF_ROWS, LEAVES, Leaf, MAX_ROWS, RegionId, bounded};
use crate::iova::Iova;
use crate::layout::MAX_REGIONS;
use crate::layout::controller::{ControllerLayout, UNMAP_LOG};
use crate::segment::Segment;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What [`DmaWriter::map`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapped {
    /// The row is new.
    New,
    /// The very same row was there already.
    Already,
}

/// The writer: one per table, in the frontend.
///
/// It may die at any instruction; [`DmaWriter::attach`] of a successor finishes or undoes what was under way, and no
/// reader sees a wrong row meanwhile ([`super::Busy`] at worst).
pub struct DmaWriter {
    pub(super) segment: Arc<Segment<ControllerLayout>>,
    /// Leaves that are not in the root.
    pub(super) free: Vec<usize>,
    /// Rows in all leaves.
    pub(super) rows: usize,
    /// Rows by region.
    pub(super) region_rows: Box<[u32; MAX_REGIONS]>,
}

/// Where a row would go.
struct Place {
    /// Position in the root.
    position: usize,
    /// Index of the leaf there.
    leaf: usize,
    /// Rows of the leaf that start at or below the address.
    row: usize,
    /// Rows of the leaf.
    count: usize,
}

impl DmaWriter {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Number of rows that name `region`; a region without rows may be dropped.
    pub fn rows_in(&self, region: RegionId) -> u32 {
        self.region_rows.get(region.0 as usize).copied().unwrap_or(0)
    }

    /// The segment that the table lies in.
    pub fn segment(&self) -> &Arc<Segment<ControllerLayout>> {
        &self.segment
    }

    /// Calls `report` with every row, in the order of addresses.
    pub fn for_each(&self, mut report: impl FnMut(DmaRow)) {
        let table = self.table();
        for position in 0..bounded(&table.root.count, LEAVES) {
            let Some(leaf) = self.leaf_at(position).and_then(|leaf| table.leaves.get(leaf)) else {
                continue;
            };
            (0..bounded(&leaf.count, LEAF_ROWS)).for_each(|at| report(leaf.row(at)));
        }
    }

    /// Makes a row valid. Mapping the very same row again changes nothing.
    ///
    /// # Errors
    /// [`DmaError::Invalid`], [`DmaError::Overlap`], [`DmaError::Full`].
    pub fn map(&mut self, row: DmaRow) -> Result<Mapped, DmaError> {
        let DmaRow { iova, size, .. } = row;
        let region = row.region.is_none_or(|region| (region.0 as usize) < MAX_REGIONS);
        let valid = iova.last_of(size).is_some() && row.offset.checked_add(size).is_some();
        if !valid || !region {
            return Err(DmaError::Invalid { iova, size });
        }
        // A second turn once two leaves were merged to make room.
        for _ in 0..2 {
            let Some(place) = self.place(iova.0) else {
                self.first_row(row)?;
                self.count_row(&row);
                return Ok(Mapped::New);
            };
            if let Some(other) = self.overlapping(&place, &row) {
                let overlap = DmaError::Overlap { iova, size, other: other.iova };
                return if other == row { Ok(Mapped::Already) } else { Err(overlap) };
            }
            if self.rows >= MAX_ROWS {
                return Err(DmaError::Full);
            }
            if place.count < LEAF_ROWS || !self.free.is_empty() {
                self.widen(&place, &row);
                self.insert(place, row)?;
                self.count_row(&row);
                return Ok(Mapped::New);
            }
            self.merge_two()?;
        }
        Err(DmaError::Full)
    }

    /// Removes the row that is exactly this range and returns the new `dma_version`: once every worker has
    /// acknowledged it, nothing in flight touches the range any more.
    ///
    /// # Errors
    /// [`DmaError::NotMapped`], [`DmaError::Partial`], [`DmaError::Invalid`].
    pub fn unmap(&mut self, iova: Iova, size: u64) -> Result<u64, DmaError> {
        let row = self.covering(iova.0).ok_or(DmaError::NotMapped { iova, size })?;
        if (row.iova, row.size) != (iova, size) {
            return Err(DmaError::Partial { iova, size, other: row.iova });
        }
        self.unmap_range(iova, size)
    }

    /// Removes every row within the range and returns the new `dma_version`, as [`Self::unmap`] does.
    ///
    /// # Errors
    /// [`DmaError::Partial`] if a row lies partly in it, [`DmaError::NotMapped`] if none lies in it,
    /// [`DmaError::Invalid`]; then nothing was removed.
    pub fn unmap_range(&mut self, iova: Iova, size: u64) -> Result<u64, DmaError> {
        let last = iova.last_of(size).ok_or(DmaError::Invalid { iova, size })?;
        let edges = [
            self.covering(iova.0).filter(|row| row.iova < iova),
            self.covering(last.0).filter(|row| row.last() > last.0),
        ];
        if let Some(row) = edges.into_iter().flatten().next() {
            return Err(DmaError::Partial { iova, size, other: row.iova });
        }
        if self.next_within(iova.0, last.0).is_none() {
            return Err(DmaError::NotMapped { iova, size });
        }
        Ok(self.unmap_logged(iova, size))
    }

    /// Removes every row and returns the new `dma_version`, also if there was none.
    pub fn unmap_all(&mut self) -> u64 {
        self.unmap_logged(Iova(0), u64::MAX)
    }

    /// The newest unmap: first address, bytes, its `dma_version`. A frontend that repeats the unmap of a journalled
    /// message after a crash finds here that it was done already.
    pub fn last_unmap(&self) -> Option<(Iova, u64, u64)> {
        let version = self.segment.signals.dma_version.load(Ordering::Relaxed);
        let record = &self.segment.unmaps[(version % UNMAP_LOG as u64) as usize];
        let iova = Iova(record.iova.load(Ordering::Relaxed));
        (version != 0).then(|| (iova, record.size.load(Ordering::Relaxed), version))
    }

    /// Writes the intent, then does it.
    fn unmap_logged(&mut self, iova: Iova, size: u64) -> u64 {
        let segment = Arc::clone(&self.segment);
        let intent = &segment.dma.unmap;
        put(&intent.iova, iova.0);
        put(&intent.size, size);
        let version = segment.signals.dma_version.load(Ordering::Relaxed).wrapping_add(1);
        put(&intent.version, version);
        self.finish_unmap();
        version
    }

    /// Carries the written unmap out; again changes nothing.
    pub(super) fn finish_unmap(&mut self) {
        let segment = Arc::clone(&self.segment);
        let intent = &segment.dma.unmap;
        let version = intent.version.load(Ordering::Acquire);
        if version == 0 {
            return;
        }
        let (iova, size) =
            (intent.iova.load(Ordering::Relaxed), intent.size.load(Ordering::Relaxed));
        let signal = &segment.signals.dma_version;
        if signal.load(Ordering::Relaxed).wrapping_add(1) == version {
            self.remove_within(iova, size);
            let record = &segment.unmaps[(version % UNMAP_LOG as u64) as usize];
            put(&record.iova, iova);
            put(&record.size, size);
            // Release: pairs with the Acquire in `unmaps_since` and in `GuestMemory::refresh`.
            put(signal, version);
        }
        put(&intent.version, 0);
    }

    fn remove_within(&mut self, iova: u64, size: u64) {
        if (iova, size) == (0, u64::MAX) {
            let leaves = bounded(&self.table().root.count, LEAVES);
            self.drop_leaves(0, leaves);
            return;
        }
        let last = iova.saturating_add(size.saturating_sub(1));
        // Each turn takes rows out of another leaf.
        for _ in 0..=LEAVES {
            let Some((position, first_row)) = self.next_within(iova, last) else { return };
            let Some(index) = self.leaf_at(position) else { return };
            let segment = Arc::clone(&self.segment);
            let leaf = &segment.dma.leaves[index];
            let count = bounded(&leaf.count, LEAF_ROWS);
            let end = (first_row..count).find(|&at| leaf.row(at).last() > last).unwrap_or(count);
            if first_row == 0 && end == count {
                self.drop_leaves(position, 1);
                continue;
            }
            (first_row..end).for_each(|at| self.uncount_row(&leaf.row(at)));
            segment.dma.remove_rows(index, first_row, end - first_row);
        }
    }

    /// Takes whole leaves out of the root.
    fn drop_leaves(&mut self, position: usize, amount: usize) {
        if amount == 0 {
            return;
        }
        let segment = Arc::clone(&self.segment);
        let dropped: Vec<usize> =
            (position..position + amount).filter_map(|at| self.leaf_at(at)).collect();
        segment.dma.remove_leaves(position, amount);
        for index in dropped {
            let leaf = &segment.dma.leaves[index];
            (0..bounded(&leaf.count, LEAF_ROWS)).for_each(|at| self.uncount_row(&leaf.row(at)));
            self.free.push(index);
        }
    }

    /// Position in the root and row of the first row that starts in the range.
    fn next_within(&self, first: u64, last: u64) -> Option<(usize, usize)> {
        let place = self.place(first)?;
        let at_or_after = match place.row.checked_sub(1) {
            Some(row) if self.leaf(place.leaf).row(row).iova.0 == first => row,
            _ => place.row,
        };
        let found = match at_or_after < place.count {
            true => (place.position, at_or_after),
            false => (place.position + 1, 0),
        };
        let leaf = self.leaf(self.leaf_at(found.0)?);
        let exists = found.1 < bounded(&leaf.count, LEAF_ROWS);
        (exists && leaf.row(found.1).iova.0 <= last).then_some(found)
    }

    /// The row that covers an address.
    fn covering(&self, iova: u64) -> Option<DmaRow> {
        let place = self.place(iova)?;
        let row = self.leaf(place.leaf).row(place.row.checked_sub(1)?);
        (row.last() >= iova).then_some(row)
    }

    /// Where `iova` belongs; `None` if there is no leaf.
    fn place(&self, iova: u64) -> Option<Place> {
        let root = &self.table().root;
        let leaves = bounded(&root.count, LEAVES);
        let position = upper_bound(&root.firsts[..leaves], iova).saturating_sub(1);
        let leaf = self.leaf_at(position)?;
        let count = bounded(&self.leaf(leaf).count, LEAF_ROWS);
        let row = upper_bound(&self.leaf(leaf).starts[..count], iova);
        Some(Place { position, leaf, row, count })
    }

    /// A row that shares an address with `row`; the very same one if it is there.
    fn overlapping(&self, place: &Place, row: &DmaRow) -> Option<DmaRow> {
        let leaf = self.leaf(place.leaf);
        let before = place.row.checked_sub(1).map(|at| leaf.row(at));
        if let Some(before) = before.filter(|before| before.last() >= row.iova.0) {
            return Some(before);
        }
        let (position, at) = self.next_within(row.iova.0, row.last())?;
        self.leaf_at(position).map(|leaf| self.leaf(leaf).row(at))
    }

    /// Moves the borders in the root so that `row` lies within its leaf's.
    fn widen(&self, place: &Place, row: &DmaRow) {
        let root = &self.table().root;
        if place.position == 0 && row.iova.0 < root.firsts[0].load(Ordering::Relaxed) {
            put(&root.firsts[0], row.iova.0);
        }
        let next = place.position + 1;
        if let Some(leaf) = self.leaf_at(next)
            && root.firsts[next].load(Ordering::Relaxed) <= row.last()
        {
            // Rows below it were removed since; nothing overlaps, so the leaf starts above the new row.
            put(&root.firsts[next], self.leaf(leaf).starts[0].load(Ordering::Relaxed));
        }
    }

    fn insert(&mut self, place: Place, row: DmaRow) -> Result<(), DmaError> {
        if place.count < LEAF_ROWS {
            self.table().insert_row(place.leaf, place.row, row.words());
            return Ok(());
        }
        if place.row == place.count {
            // Ascending maps fill leaf after leaf.
            let fresh = self.fresh_leaf(&[row])?;
            self.table().insert_leaf(place.position + 1, row.iova.0, fresh);
            return Ok(());
        }
        let half = LEAF_ROWS / 2;
        let upper: Vec<DmaRow> =
            (half..LEAF_ROWS).map(|at| self.leaf(place.leaf).row(at)).collect();
        let fresh = self.fresh_leaf(&upper)?;
        let first = upper.first().map_or(0, |row| row.iova.0);
        self.table().insert_leaf(place.position + 1, first, fresh);
        // The copies in the old leaf are out of reach from here on.
        self.table().remove_rows(place.leaf, half, LEAF_ROWS - half);
        let (leaf, at) = match place.row.checked_sub(half) {
            Some(at) if row.iova.0 >= first => (fresh, at),
            _ => (place.leaf, place.row),
        };
        self.table().insert_row(leaf, at, row.words());
        Ok(())
    }

    /// The first row of an empty table.
    fn first_row(&mut self, row: DmaRow) -> Result<(), DmaError> {
        let fresh = self.fresh_leaf(&[row])?;
        self.table().insert_leaf(0, row.iova.0, fresh);
        Ok(())
    }

    /// A leaf outside the root, filled with `rows`.
    fn fresh_leaf(&mut self, rows: &[DmaRow]) -> Result<usize, DmaError> {
        let index = self.free.pop().ok_or(DmaError::Full)?;
        let leaf = self.leaf(index);
        // A reader that came here before the leaf was freed sees the generation move.
        let odd = leaf.generation.load(Ordering::Relaxed) | 1;
        put(&leaf.generation, odd);
        append(leaf, 0, rows.iter().copied());
        put(&leaf.generation, odd.wrapping_add(1));
        Ok(index)
    }

    /// Makes one leaf of two neighbours that fit into one. With all leaves in use and a row to spare there always are
    /// such (see the assertion at `LEAVES`).
    fn merge_two(&mut self) -> Result<(), DmaError> {
        let count = |position| {
            self.leaf_at(position)
                .map_or(LEAF_ROWS, |leaf| bounded(&self.leaf(leaf).count, LEAF_ROWS))
        };
        let leaves = bounded(&self.table().root.count, LEAVES);
        let position = (1..leaves)
            .find(|&position| count(position - 1) + count(position) <= LEAF_ROWS)
            .ok_or(DmaError::Full)?;
        let (Some(low), Some(high)) = (self.leaf_at(position - 1), self.leaf_at(position)) else {
            return Err(DmaError::Full);
        };
        let segment = Arc::clone(&self.segment);
        let (to, from) = (&segment.dma.leaves[low], &segment.dma.leaves[high]);
        let odd = to.generation.load(Ordering::Relaxed) | 1;
        put(&to.generation, odd);
        append(to, count(position - 1), (0..count(position)).map(|at| from.row(at)));
        put(&to.generation, odd.wrapping_add(1));
        // Until here the copies are out of reach: their addresses lead to the other leaf.
        segment.dma.remove_leaves(position, 1);
        self.free.push(high);
        Ok(())
    }

    pub(super) fn table(&self) -> &DmaTable {
        &self.segment.dma
    }

    /// A leaf by its index, which came from `leaf_at` or the free list.
    pub(super) fn leaf(&self, index: usize) -> &Leaf {
        &self.table().leaves[index]
    }

    /// Index of the leaf at a position of the root, bounded.
    pub(super) fn leaf_at(&self, position: usize) -> Option<usize> {
        let root = &self.table().root;
        if position >= bounded(&root.count, LEAVES) {
            return None;
        }
        let index = root.leaves[position].load(Ordering::Relaxed);
        usize::try_from(index).ok().filter(|&index| index < LEAVES)
    }

    pub(super) fn count_row(&mut self, row: &DmaRow) {
        self.rows += 1;
        if let Some(rows) =
            row.region.and_then(|region| self.region_rows.get_mut(region.0 as usize))
        {
            *rows += 1;
        }
    }

    fn uncount_row(&mut self, row: &DmaRow) {
        self.rows = self.rows.saturating_sub(1);
        if let Some(rows) =
            row.region.and_then(|region| self.region_rows.get_mut(region.0 as usize))
        {
            *rows = rows.saturating_sub(1);
        }
    }
}

/// Stores rows from `count` on, the count last; the leaf has the room, and its generation is odd.
fn append(leaf: &Leaf, count: usize, rows: impl Iterator<Item = DmaRow>) {
    let mut at = count;
    for row in rows.take(LEAF_ROWS - count) {
        let [start, size, offset, target] = row.words();
        put(&leaf.starts[at], start);
        put(&leaf.rows[at].size, size);
        put(&leaf.rows[at].offset, offset);
        put(&leaf.rows[at].target, target);
        at += 1;
    }
    put(&leaf.count, at as u64);
}
