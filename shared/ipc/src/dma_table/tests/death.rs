//! The writer killed at every store, and what its successor finds.

use super::super::{DmaWriter, LEAVES};
use super::model::{Model, Op, apply, apply_model, op};
use super::{crash, row, segment, writer};
use crate::layout::controller::ControllerLayout;
use crate::segment::Segment;
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn successor_finds_a_killed_change_done_or_not_begun(
        before in proptest::collection::vec(op(), 1..300),
        last in op(),
    ) {
        let last = match last {
            Op::MapUp(iova, rows) => Op::MapUp(iova, rows % 3 + 1),
            other => other,
        };
        killed_everywhere(&before, &last, 37);
    }
}

/// Deaths within `last`, before every `stride`th store (and each of the first hundred): the successor finds all of the
/// rows as before or as after, a retried change succeeds, and an unmap is published if and only if its rows are gone.
fn killed_everywhere(before: &[Op], last: &Op, stride: usize) {
    let (mut base, mut base_model) = (writer(), Model::default());
    before.iter().for_each(|op| apply(&mut base, &mut base_model, op));
    killed_from(&base, &base_model, last, stride);
}

pub(super) fn killed_from(base: &DmaWriter, old: &Model, last: &Op, stride: usize) {
    let old_version = base.segment().signals.dma_version.load(Ordering::Relaxed);
    let mut steps = 0;
    loop {
        let segment = copy(base);
        let version = || segment.signals.dma_version.load(Ordering::Relaxed);
        let mut writer = DmaWriter::attach(Arc::clone(&segment)).unwrap();
        let mut model = old.clone();
        let killed = crash::after(steps, || apply(&mut writer, &mut model, last)).is_none();
        let mut new = old.clone();
        drop(writer);
        let mut writer = DmaWriter::attach(Arc::clone(&segment)).unwrap();
        if !killed {
            model.check(&writer);
            return;
        }
        match *last {
            // Each map stands for itself: the rows are those before and some of the new ones, from the first on.
            Op::Map(..) | Op::MapUp(..) => {
                let (iova, size, rows) = match *last {
                    Op::MapUp(iova, rows) => (iova, 4096, rows),
                    Op::Map(iova, size) => (iova, size, 1),
                    _ => unreachable!(),
                };
                for number in 0..rows {
                    if new.0.len() == writer.len() {
                        break;
                    }
                    let _ = new.map(row(iova + (number << 12), size));
                }
                new.check(&writer);
                assert_eq!(version(), old_version);
            }
            Op::Attach => old.check(&writer),
            _ => {
                let gone = version() != old_version;
                apply_model(&mut new, last);
                if gone { &new } else { old }.check(&writer);
                assert_eq!(version() - old_version, u64::from(gone));
            }
        }
        let mut retried = Model::default();
        writer.for_each(|row| {
            retried.0.insert(row.iova.0, row);
        });
        apply(&mut writer, &mut retried, last);
        retried.check(&writer);
        steps += if steps < 100 { 1 } else { stride };
    }
}

/// A new segment with the same table.
fn copy(base: &DmaWriter) -> Arc<Segment<ControllerLayout>> {
    let to = segment();
    let from = base.segment();
    let version = from.signals.dma_version.load(Ordering::Relaxed);
    to.signals.dma_version.store(version, Ordering::Relaxed);
    let words = |from: *const AtomicU64, to: *const AtomicU64, bytes: usize| {
        for at in 0..bytes / 8 {
            // SAFETY: both point to `bytes` bytes of atomics, in segments that live here.
            let (from, to) = unsafe { (&*from.add(at), &*to.add(at)) };
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    };
    let (a, b) = (&from.dma, &to.dma);
    words((&raw const a.root).cast(), (&raw const b.root).cast(), size_of_val(&a.root));
    for position in 0..LEAVES {
        let Some(leaf) = base.leaf_at(position) else { break };
        let (a, b) = (&a.leaves[leaf], &b.leaves[leaf]);
        words((&raw const *a).cast(), (&raw const *b).cast(), size_of_val(a));
    }
    to
}

#[test]
fn successor_survives_death_within_split_merge_and_root_shift() {
    // A full leaf in the middle is split.
    let full = [Op::MapUp(0, 126), Op::MapUp(1000 << 12, 126), Op::Unmap(50 << 12, 4096)];
    let refill = [&full[..], &[Op::Map(50 << 12, 2048)]].concat();
    killed_everywhere(&refill, &Op::Map((50 << 12) + 2048, 2048), 1);
    // Rows below the border of the next leaf are gone; the new row reaches past it.
    let border = [Op::MapUp(0, 252), Op::UnmapRange(120 << 12, 20 << 12)];
    killed_everywhere(&border, &Op::Map(121 << 12, 15 << 12), 1);
    killed_everywhere(&border, &Op::UnmapRange(100 << 12, 152 << 12), 1);
    killed_everywhere(&border, &Op::UnmapAll, 1);
    killed_everywhere(&[], &Op::Map(0, 4096), 1);
}
