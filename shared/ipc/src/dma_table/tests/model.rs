//! The table against a sorted map.

use super::super::{DmaRow, DmaWriter, Mapped, RegionId};
use super::{row, writer};
use crate::iova::Iova;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the table should do, in the plainest way.
#[derive(Clone, Default)]
pub(super) struct Model(pub(super) BTreeMap<u64, DmaRow>);

impl Model {
    pub(super) fn covering(&self, iova: u64) -> Option<DmaRow> {
        let (_, row) = self.0.range(..=iova).next_back()?;
        (iova - row.iova.0 < row.size).then_some(*row)
    }

    pub(super) fn map(&mut self, row: DmaRow) -> Result<Mapped, ()> {
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

    pub(super) fn unmap_range(&mut self, iova: u64, size: u64) -> Result<(), ()> {
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

    pub(super) fn check(&self, writer: &DmaWriter) {
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
pub(super) enum Op {
    Map(u64, u64),
    MapUp(u64, u64),
    Unmap(u64, u64),
    UnmapRange(u64, u64),
    UnmapAll,
    Attach,
}

pub(super) fn op() -> impl Strategy<Value = Op> {
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

pub(super) fn apply(writer: &mut DmaWriter, model: &mut Model, op: &Op) {
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

pub(super) fn apply_model(model: &mut Model, op: &Op) {
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
}
