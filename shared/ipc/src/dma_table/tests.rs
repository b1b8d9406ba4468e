//! The table against a model, killed at every store, read while it changes, and full of garbage.

pub(super) mod crash {
    use std::cell::Cell;

    thread_local! {
        static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
    }

    /// One store of the writer; the process dies before the one that was chosen.
    pub(crate) fn step() {
        LEFT.with(|left| match left.get() {
            Some(0) => {
                left.set(None);
                std::panic::resume_unwind(Box::new("killed"));
            }
            Some(steps) => left.set(Some(steps - 1)),
            None => {}
        });
    }

    /// Runs `act`, killed before its store number `steps`; `None` if it was.
    pub(super) fn after<T>(steps: usize, act: impl FnOnce() -> T) -> Option<T> {
        LEFT.with(|left| left.set(Some(steps)));
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
        LEFT.with(|left| left.set(None));
        match done {
            Err(cause) if cause.downcast_ref() != Some(&"killed") => {
                std::panic::resume_unwind(cause)
            }
            other => other.ok(),
        }
    }
}

use super::{Access, DmaError, DmaRow, DmaWriter, Mapped, RegionId, Unmaps, unmaps_since};
use crate::iova::Iova;
use crate::layout::controller::ControllerLayout;
use crate::segment::Segment;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

fn segment() -> Arc<Segment<ControllerLayout>> {
    Arc::new(Segment::create("dma test", 1).unwrap())
}

fn writer() -> DmaWriter {
    DmaWriter::attach(segment()).unwrap()
}

fn row(iova: u64, size: u64) -> DmaRow {
    DmaRow {
        iova: Iova(iova),
        size,
        region: Some(RegionId((iova >> 12) as u32 % 7)),
        offset: iova ^ 0xabc0,
        access: Access::READ_WRITE,
    }
}

/// What the table should do, in the plainest way.
#[derive(Clone, Default)]
struct Model(BTreeMap<u64, DmaRow>);

impl Model {
    fn covering(&self, iova: u64) -> Option<DmaRow> {
        let (_, row) = self.0.range(..=iova).next_back()?;
        (iova - row.iova.0 < row.size).then_some(*row)
    }

    fn map(&mut self, row: DmaRow) -> Result<Mapped, ()> {
        let last = row.iova.0 + (row.size - 1);
        if self.covering(row.iova.0) == Some(row) {
            return Ok(Mapped::Already);
        }
        if self.covering(row.iova.0).is_some() || self.0.range(row.iova.0..=last).next().is_some() {
            return Err(());
        }
        self.0.insert(row.iova.0, row);
        Ok(Mapped::New)
    }

    fn unmap_range(&mut self, iova: u64, size: u64) -> Result<(), ()> {
        let last = iova + (size - 1);
        let starts_before = self.covering(iova).is_some_and(|row| row.iova.0 < iova);
        let ends_after = self.covering(last).is_some_and(|row| row.iova.0 + (row.size - 1) > last);
        let inside: Vec<u64> = self.0.range(iova..=last).map(|(start, _)| *start).collect();
        if starts_before || ends_after || inside.is_empty() {
            return Err(());
        }
        inside.iter().for_each(|start| {
            self.0.remove(start);
        });
        Ok(())
    }

    fn check(&self, writer: &DmaWriter) {
        let mut rows = Vec::new();
        writer.for_each(|row| rows.push(row));
        assert_eq!(rows, self.0.values().copied().collect::<Vec<_>>());
        assert_eq!(writer.len(), rows.len());
        for region in 0..8 {
            let count = rows.iter().filter(|row| row.region == Some(RegionId(region))).count();
            assert_eq!(writer.rows_in(RegionId(region)) as usize, count);
        }
        for row in &rows {
            let last = row.iova.0 + (row.size - 1);
            for iova in [row.iova.0.wrapping_sub(1), row.iova.0, last, last.wrapping_add(1)] {
                let found = writer.table().lookup(Iova(iova)).unwrap();
                assert_eq!(found, self.covering(iova), "lookup of {iova:#x}");
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Map(u64, u64),
    MapUp(u64, u64),
    Unmap(u64, u64),
    UnmapRange(u64, u64),
    UnmapAll,
    Attach,
}

fn op() -> impl Strategy<Value = Op> {
    let place = || (0u64..3000, 1u64..4);
    prop_oneof![
        200 => place().prop_map(|(at, pages)| Op::Map(at << 12, pages << 12)),
        20 => (0u64..3000, 1u64..200).prop_map(|(at, rows)| Op::MapUp(at << 12, rows)),
        60 => place().prop_map(|(at, pages)| Op::Unmap(at << 12, pages << 12)),
        8 => (0u64..3000, 1u64..700).prop_map(|(at, n)| Op::UnmapRange(at << 12, n << 12)),
        1 => Just(Op::UnmapAll),
        2 => Just(Op::Attach),
    ]
}

fn apply(writer: &mut DmaWriter, model: &mut Model, op: &Op) {
    match *op {
        Op::Map(iova, size) => {
            let row = row(iova, size);
            assert_eq!(writer.map(row).map_err(drop), model.map(row));
        }
        Op::MapUp(iova, rows) => {
            for number in 0..rows {
                let row = row(iova + (number << 12), 4096);
                assert_eq!(writer.map(row).map_err(drop), model.map(row));
            }
        }
        Op::Unmap(iova, size) => {
            let exact =
                model.covering(iova).is_some_and(|row| (row.iova.0, row.size) == (iova, size));
            assert_eq!(writer.unmap(Iova(iova), size).is_ok(), exact);
            model.0.retain(|_, row| !exact || row.iova.0 != iova);
        }
        Op::UnmapRange(iova, size) => {
            let done = writer.unmap_range(Iova(iova), size).map(drop).map_err(drop);
            assert_eq!(done, model.unmap_range(iova, size));
        }
        Op::UnmapAll => {
            writer.unmap_all();
            model.0.clear();
        }
        Op::Attach => *writer = DmaWriter::attach(Arc::clone(writer.segment())).unwrap(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn table_equals_a_sorted_map(ops in proptest::collection::vec(op(), 1..1500)) {
        let (mut writer, mut model) = (writer(), Model::default());
        for op in &ops {
            apply(&mut writer, &mut model, op);
        }
        model.check(&writer);
    }

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

fn killed_from(base: &DmaWriter, old: &Model, last: &Op, stride: usize) {
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
    for position in 0..super::LEAVES {
        let Some(leaf) = base.leaf_at(position) else { break };
        let (a, b) = (&a.leaves[leaf], &b.leaves[leaf]);
        words((&raw const *a).cast(), (&raw const *b).cast(), size_of_val(a));
    }
    to
}

fn apply_model(model: &mut Model, op: &Op) {
    match *op {
        Op::Unmap(iova, size) => {
            let exact = model.0.get(&iova).is_some_and(|row| row.size == size);
            model.0.retain(|start, _| !exact || *start != iova);
        }
        Op::UnmapRange(iova, size) => drop(model.unmap_range(iova, size)),
        Op::UnmapAll => model.0.clear(),
        Op::Map(..) | Op::MapUp(..) | Op::Attach => {}
    }
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

#[test]
fn overlap_is_refused_and_the_same_row_again_is_not() {
    let mut writer = writer();
    assert_eq!(writer.map(row(0x4000, 0x2000)), Ok(Mapped::New));
    assert_eq!(writer.map(row(0x4000, 0x2000)), Ok(Mapped::Already));
    let other = DmaRow { access: Access::READ, ..row(0x4000, 0x2000) };
    for refused in [other, row(0x5000, 0x1000), row(0x3000, 0x1001), row(0, 1 << 40)] {
        let DmaRow { iova, size, .. } = refused;
        let error = DmaError::Overlap { iova, size, other: Iova(0x4000) };
        assert_eq!(writer.map(refused), Err(error));
    }
    assert_eq!(writer.map(row(0x3000, 0x1000)), Ok(Mapped::New));
    assert_eq!(writer.map(row(0x6000, 0x1000)), Ok(Mapped::New));
    assert_eq!(writer.len(), 3);
}

#[test]
fn ranges_at_the_ends_of_the_address_space_work_and_impossible_ones_do_not() {
    let mut writer = writer();
    let top = DmaRow { offset: 0, ..row(u64::MAX - 4095, 4096) };
    assert_eq!(writer.map(top), Ok(Mapped::New));
    assert_eq!(writer.map(DmaRow { offset: 0, ..row(0, u64::MAX - 4096) }), Ok(Mapped::New));
    assert_eq!(writer.table().lookup(Iova(u64::MAX)), Ok(Some(top)));
    let bad_region = DmaRow { region: Some(RegionId(512)), ..row(0, 1) };
    let wraps = DmaRow { offset: u64::MAX, ..row(0, 2) };
    for bad in [row(5, 0), row(u64::MAX, 2), bad_region, wraps] {
        let (iova, size) = (bad.iova, bad.size);
        assert_eq!(writer.map(bad), Err(DmaError::Invalid { iova, size }));
    }
    assert!(writer.unmap_range(Iova(u64::MAX), 2).is_err());
    writer.unmap(top.iova, top.size).unwrap();
    assert_eq!(writer.table().lookup(Iova(u64::MAX)), Ok(None));
    assert_eq!(writer.unmap_all(), 2);
    assert!(writer.is_empty());
}

#[test]
fn partial_unmap_removes_nothing() {
    let mut writer = writer();
    writer.map(row(0x4000, 0x2000)).unwrap();
    writer.map(row(0x6000, 0x2000)).unwrap();
    for (iova, size) in [(0x4000, 0x3000), (0x5000, 0x3000), (0x4000, 0x1000), (0x5000, 0x800)] {
        let error = writer.unmap_range(Iova(iova), size);
        assert!(matches!(error, Err(DmaError::Partial { .. })), "{iova:#x}+{size:#x}: {error:?}");
    }
    assert!(matches!(writer.unmap(Iova(0x4000), 0x4000), Err(DmaError::Partial { .. })));
    assert!(matches!(writer.unmap(Iova(0x8000), 1), Err(DmaError::NotMapped { .. })));
    assert!(matches!(writer.unmap_range(Iova(0), 0x4000), Err(DmaError::NotMapped { .. })));
    assert_eq!((writer.len(), writer.last_unmap()), (2, None));
    assert_eq!(writer.unmap_range(Iova(0), 1 << 32), Ok(1));
    assert_eq!(writer.last_unmap(), Some((Iova(0), 1 << 32, 1)));
    assert_eq!(writer.len(), 0);
}

/// A step of a linear congruential generator, to visit places out of order.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    *state >> 33
}

#[test]
fn full_table_takes_every_row_in_any_order_and_refuses_one_more() {
    let mut writer = writer();
    let mut order: Vec<u64> = (0..super::MAX_ROWS as u64).collect();
    let mut state = 7;
    for at in (1..order.len()).rev() {
        order.swap(at, (next(&mut state) % (at as u64 + 1)) as usize);
    }
    for round in 0..3 {
        for page in &order {
            assert_eq!(writer.map(row(page << 12, 4096)), Ok(Mapped::New), "page {page}");
        }
        assert_eq!(writer.map(row(1 << 50, 4096)), Err(DmaError::Full));
        assert_eq!(writer.map(row(order[0] << 12, 4096)), Ok(Mapped::Already));
        // Thin every leaf out to one row, then fill the holes in another order.
        for page in 0..super::MAX_ROWS as u64 {
            if page % 63 != round {
                writer.unmap(Iova(page << 12), 4096).unwrap();
            }
        }
        for page in (0..super::MAX_ROWS as u64).rev() {
            writer.map(row(page << 12, 4096)).unwrap();
        }
        assert_eq!(writer.len(), super::MAX_ROWS);
        for page in 0..super::MAX_ROWS as u64 {
            writer.unmap(Iova(page << 12), 4096).unwrap();
        }
    }
}

#[test]
fn leaves_are_merged_where_they_run_out() {
    let mut writer = writer();
    // One row in each leaf, all leaves in use.
    for leaf in 0..super::LEAVES as u64 {
        for number in 0..127 {
            if writer.len() < super::MAX_ROWS {
                writer.map(row((leaf << 32) + (number << 12), 4096)).unwrap();
            }
        }
        writer.unmap_range(Iova((leaf << 32) + 4096), 126 << 12).unwrap();
    }
    assert_eq!(writer.len(), super::LEAVES);
    let mut model = Model::default();
    writer.for_each(|row| {
        model.0.insert(row.iova.0, row);
    });
    // All leaves are in use, and this row wants one of its own.
    let wide = [Op::MapUp(7 << 32, 126), Op::Map((7 << 32) - 4096, 4096)];
    wide.iter().for_each(|op| apply(&mut writer, &mut model, op));
    let full = (7 << 32) + (125 << 12);
    killed_from(&writer, &model, &Op::Map(full + 4096, 4096), 211);
    apply(&mut writer, &mut model, &Op::Unmap(full, 4096));
    writer.unmap_range(Iova(7 << 32), 126 << 12).unwrap();
    writer.unmap(Iova((7 << 32) - 4096), 4096).unwrap();
    writer.map(row(7 << 32, 4096)).unwrap();
    for number in 1..60 {
        for leaf in 0..super::LEAVES as u64 {
            writer.map(row((leaf << 32) + (number << 12), 4096)).unwrap();
        }
    }
    let mut seen = 0;
    writer.for_each(|row| {
        seen += 1;
        assert_eq!(writer.table().lookup(row.iova), Ok(Some(row)));
    });
    assert_eq!(seen, super::LEAVES * 60);
}

#[test]
fn reader_sees_each_row_whole_while_others_come_and_go() {
    let mut writer = writer();
    let segment = Arc::clone(writer.segment());
    // Even pages stay; odd ones come and go around them.
    for page in (0..2000).step_by(2) {
        writer.map(row(page << 12, 4096)).unwrap();
    }
    let stop = AtomicBool::new(false);
    let (found, busy) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for seed in 0..2 {
            let (segment, stop, found, busy) = (&segment, &stop, &found, &busy);
            scope.spawn(move || {
                let mut state = seed;
                while !stop.load(Ordering::Relaxed) {
                    let page = next(&mut state) % 2000;
                    match segment.dma.lookup(Iova((page << 12) + 5)) {
                        Ok(Some(row)) => assert_eq!(row, self::row(page << 12, 4096)),
                        Ok(None) => assert_eq!(page % 2, 1, "page {page} was never unmapped"),
                        Err(super::Busy) => drop(busy.fetch_add(1, Ordering::Relaxed)),
                    }
                    found.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let until = Instant::now() + Duration::from_millis(500);
        let mut state = 99;
        while Instant::now() < until {
            let page = next(&mut state) % 1000 * 2 + 1;
            if writer.map(row(page << 12, 4096)) == Ok(Mapped::Already) {
                writer.unmap(Iova(page << 12), 4096).unwrap();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    let (found, busy) = (found.into_inner(), busy.into_inner());
    assert!(found > 1000 && busy < found / 2, "{found} lookups, {busy} of them busy");
}

#[test]
fn unmaps_are_reported_until_the_log_is_too_old() {
    let mut writer = writer();
    let segment = Arc::clone(writer.segment());
    for page in 0..100 {
        writer.map(row(page << 12, 4096)).unwrap();
    }
    for page in 0..10 {
        assert_eq!(writer.unmap(Iova(page << 12), 4096), Ok(page + 1));
    }
    let mut ranges = Vec::new();
    let seen = unmaps_since(&segment, 7, &mut |iova, size| ranges.push((iova.0, size)));
    assert_eq!(seen, Unmaps::Known(10));
    assert_eq!(ranges, [(7 << 12, 4096), (8 << 12, 4096), (9 << 12, 4096)]);
    for page in 10..80 {
        writer.unmap(Iova(page << 12), 4096).unwrap();
    }
    assert_eq!(unmaps_since(&segment, 7, &mut |_, _| {}), Unmaps::Everything(80));
    assert_eq!(unmaps_since(&segment, 80, &mut |_, _| panic!("nothing new")), Unmaps::Known(80));
    // A version of the future is no reason to loop.
    assert_eq!(unmaps_since(&segment, 81, &mut |_, _| {}), Unmaps::Everything(80));
}

#[test]
fn any_bytes_end_in_a_bounded_answer() {
    let mut state = 42;
    for round in 0..60 {
        let mut writer = writer();
        for page in 0..400 {
            writer.map(row(page << 13, 4096)).unwrap();
        }
        let segment = Arc::clone(writer.segment());
        drop(writer);
        let words = size_of::<super::DmaTable>() / 8;
        let first = (&raw const segment.dma).cast::<AtomicU64>();
        for _ in 0..(1 << (round % 12)) {
            // Mostly in the intents, the root and the first leaves.
            let at = next(&mut state) as usize % if round % 3 == 0 { words } else { 4000 };
            let value = match round % 4 {
                0 => next(&mut state) << 31 | next(&mut state),
                1 => next(&mut state) % 130,
                2 => u64::MAX,
                _ => next(&mut state) % 3,
            };
            // SAFETY: at < words, and the table is an array of atomics.
            unsafe { &*first.add(at) }.store(value, Ordering::Relaxed);
        }
        for page in 0..40 {
            let _ = segment.dma.lookup(Iova(page << 14));
        }
        let _ = segment.dma.lookup(Iova(u64::MAX));
        if let Ok(mut writer) = DmaWriter::attach(segment) {
            let _ = writer.map(row(1 << 40, 4096));
            writer.unmap_all();
            assert!(writer.is_empty());
        }
    }
}

/// Prints what the table costs: `cargo test --release -p ipc dma_table -- --ignored --nocapture`.
#[test]
#[ignore = "prints figures"]
fn cost_of_lookup_map_and_unmap() {
    let pages = super::MAX_ROWS as u64;
    let mut writer = writer();
    let timed = |what: &str, count: u64, act: &mut dyn FnMut(u64)| {
        let start = Instant::now();
        (0..count).for_each(act);
        println!("{what}: {:.1} ns", start.elapsed().as_nanos() as f64 / count as f64);
    };
    timed("map, ascending", pages, &mut |page| {
        let _ = writer.map(row(page << 12, 4096));
    });
    let segment = Arc::clone(writer.segment());
    let (mut state, mut sum) = (1, 0);
    timed("lookup, random, 65535 rows", 2_000_000, &mut |_| {
        let iova = Iova((next(&mut state) % pages) << 12);
        sum += segment.dma.lookup(iova).ok().flatten().map_or(0, |row| row.offset);
    });
    timed("lookup, ascending, 65535 rows", 2_000_000, &mut |at| {
        sum +=
            segment.dma.lookup(Iova((at % pages) << 12)).ok().flatten().map_or(0, |row| row.size);
    });
    timed("unmap and map, random, 65535 rows", 500_000, &mut |_| {
        let page = next(&mut state) % pages;
        let _ = writer.unmap(Iova(page << 12), 4096);
        let _ = writer.map(row(page << 12, 4096));
    });
    timed("unmap, ascending", pages, &mut |page| {
        let _ = writer.unmap(Iova(page << 12), 4096);
    });
    assert!(writer.is_empty() && sum > 0);
}
