//! Taking a table over, whatever its last writer left behind.

use super::edit::put;
use super::{DmaError, DmaWriter, LEAF_ROWS, LEAVES, MAX_ROWS, bounded};
use crate::layout::MAX_REGIONS;
use crate::layout::controller::ControllerLayout;
use crate::segment::Segment;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl DmaWriter {
    /// Becomes the writer of the table in `segment`: a new one, or one whose writer is proven dead. A change that was
    /// under way is finished, or undone if it had not become visible; an unmap that was under way is published.
    ///
    /// # Errors
    /// [`DmaError::Corrupt`] if no writer can have left this behind; the table is then not to be used.
    pub fn attach(segment: Arc<Segment<ControllerLayout>>) -> Result<Self, DmaError> {
        let mut writer =
            Self { segment, free: Vec::new(), rows: 0, region_rows: Box::new([0; MAX_REGIONS]) };
        writer.segment.dma.finish_edit()?;
        writer.repair_leaves()?;
        writer.recount()?;
        writer.finish_unmap();
        Ok(writer)
    }

    /// Undoes what a split or a merge left between two of its steps, ends odd generations, drops empty leaves.
    fn repair_leaves(&mut self) -> Result<(), DmaError> {
        let segment = Arc::clone(&self.segment);
        let table = &segment.dma;
        end_generation(&table.root.generation);
        table.leaves.iter().for_each(|leaf| end_generation(&leaf.generation));
        if table.root.count.load(Ordering::Relaxed) > LEAVES as u64 {
            return Err(DmaError::Corrupt("number of leaves"));
        }
        // From the end, so that a removal moves none that is still to be looked at.
        for position in (0..bounded(&table.root.count, LEAVES)).rev() {
            let index = self.leaf_at(position).ok_or(DmaError::Corrupt("index of a leaf"))?;
            let leaf = &table.leaves[index];
            let count = leaf.count.load(Ordering::Relaxed);
            if count > LEAF_ROWS as u64 {
                return Err(DmaError::Corrupt("number of rows"));
            }
            let next = position + 1;
            let border = (next < bounded(&table.root.count, LEAVES))
                .then(|| table.root.firsts[next].load(Ordering::Relaxed));
            let count = count as usize;
            let within = (0..count)
                .take_while(|&at| {
                    border.is_none_or(|border| leaf.starts[at].load(Ordering::Relaxed) < border)
                })
                .count();
            if within == 0 {
                table.remove_leaves(position, 1);
            } else if within < count {
                table.remove_rows(index, within, count - within);
            }
        }
        Ok(())
    }

    /// Checks the order of everything and counts it.
    fn recount(&mut self) -> Result<(), DmaError> {
        let segment = Arc::clone(&self.segment);
        let table = &segment.dma;
        let mut used = vec![false; LEAVES];
        // Everything from here on is free.
        let mut end: u128 = 0;
        for position in 0..bounded(&table.root.count, LEAVES) {
            let index = self.leaf_at(position).ok_or(DmaError::Corrupt("index of a leaf"))?;
            if std::mem::replace(&mut used[index], true) {
                return Err(DmaError::Corrupt("leaf in two places"));
            }
            let first = table.root.firsts[position].load(Ordering::Relaxed);
            if u128::from(first) < end {
                return Err(DmaError::Corrupt("order of leaves"));
            }
            end = u128::from(first);
            for at in 0..bounded(&table.leaves[index].count, LEAF_ROWS) {
                let row = table.leaves[index].row(at);
                if u128::from(row.iova.0) < end || row.iova.last_of(row.size).is_none() {
                    return Err(DmaError::Corrupt("order of rows"));
                }
                end = u128::from(row.iova.0) + u128::from(row.size);
                self.count_row(&row);
            }
        }
        if self.rows > MAX_ROWS {
            return Err(DmaError::Corrupt("number of rows"));
        }
        self.free = (0..LEAVES).rev().filter(|&index| !used[index]).collect();
        Ok(())
    }
}

/// Ends an odd generation: what it guarded is repaired or was never in reach.
fn end_generation(generation: &std::sync::atomic::AtomicU64) {
    let value = generation.load(Ordering::Relaxed);
    if value & 1 != 0 {
        put(generation, value.wrapping_add(1));
    }
}
