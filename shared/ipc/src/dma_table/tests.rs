//! The table at its limits, read while it changes, and full of garbage.

pub(super) mod crash;
mod death;
mod model;

use super::{Access, DmaError, DmaRow, DmaWriter, Mapped, RegionId, Unmaps, unmaps_since};
use crate::iova::Iova;
use crate::layout::controller::ControllerLayout;
use crate::segment::Segment;
use death::killed_from;
use model::{Model, Op, apply};
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
#[ignore = "prints figures: make bench runs it"]
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
