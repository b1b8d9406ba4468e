//! Requests that need several commands: cut into parts that are under way at the same time, and put together again. On
//! the hot path: a comparison for a request of one command.

use super::drive::Drive;
use crate::request::{Op, Outcome};
use std::ops::Range;

/// Most parts of a request, so that one of many commands leaves room for others.
pub(super) const PARTS_MAX: usize = 8;

/// How a request is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parts {
    /// Where each part ends, in bytes from the request's beginning.
    ends: [u64; PARTS_MAX],
    count: usize,
}

impl Parts {
    fn whole(length: u64) -> Self {
        Self { ends: [length; PARTS_MAX], count: 1 }
    }

    /// How many there are; at least 1.
    pub fn count(&self) -> usize {
        self.count
    }

    /// A part, in bytes from the request's beginning.
    pub fn range(&self, number: usize) -> Range<u64> {
        let start = if number == 0 { 0 } else { self.ends[number - 1] };
        start..self.ends[number]
    }
}

/// Cuts a request into at most `most` parts, so that no more commands come of it than without. What has an order of its
/// own stays in one piece.
#[inline]
pub(super) fn cut(op: Op, offset: u64, length: u64, drive: &Drive, most: usize) -> Parts {
    match op {
        Op::Read | Op::Write | Op::Compare if length > drive.data_piece(offset, length) => {
            cut_data(offset, length, drive, most.min(PARTS_MAX))
        }
        Op::WriteZeroes | Op::Deallocate if drive.zeroes_max > 0 => {
            cut_evenly(length, drive.zeroes_max, most.min(PARTS_MAX))
        }
        Op::Verify if drive.verify_max > 0 => {
            cut_evenly(length, drive.verify_max, most.min(PARTS_MAX))
        }
        Op::WriteZeroes | Op::Deallocate | Op::Verify => {
            cut_evenly(length, drive.data_max, most.min(PARTS_MAX))
        }
        Op::Read | Op::Write | Op::Compare | Op::Flush | Op::CompareAndWrite | Op::Copy => {
            Parts::whole(length)
        }
    }
}

#[cold]
fn cut_data(offset: u64, length: u64, drive: &Drive, most: usize) -> Parts {
    let mut commands = 0;
    let mut at = 0;
    while at < length {
        at += piece(drive, offset + at, length - at);
        commands += 1;
    }
    let count = most.min(commands).max(1);
    let mut parts = Parts { count, ..Parts::whole(length) };
    let (mut at, mut number, mut seen) = (0, 0, 0);
    while at < length && number + 1 < count {
        at += piece(drive, offset + at, length - at);
        seen += 1;
        if seen == (number + 1) * commands / count {
            parts.ends[number] = at;
            number += 1;
        }
    }
    parts
}

/// Bytes of the command that begins here; never 0, so that every walk ends.
fn piece(drive: &Drive, offset: u64, left: u64) -> u64 {
    drive.data_piece(offset, left).max(1)
}

#[inline]
fn cut_evenly(length: u64, unit: u64, most: usize) -> Parts {
    if length <= unit {
        return Parts::whole(length);
    }
    let commands = length.div_ceil(unit.max(1));
    let count = (most as u64).min(commands).max(1);
    let mut parts = Parts { count: count as usize, ..Parts::whole(length) };
    for number in 1..count {
        // Below `length`: fewer than all commands, each of at most `unit`.
        parts.ends[number as usize - 1] =
            commands / count * number * unit + (commands % count).min(number) * unit;
    }
    parts
}

/// Requests of several parts.
pub(super) struct Groups {
    groups: Vec<Group>,
    free: Vec<u16>,
}

#[derive(Clone, Copy)]
struct Group {
    tag: u32,
    left: u16,
    /// The first error by the order of the parts, and whose it is.
    outcome: Outcome,
    failed: u16,
}

impl Groups {
    /// Room for as many as there are places.
    pub fn new(places: u16) -> Self {
        let none = Group { tag: 0, left: 0, outcome: Ok(()), failed: 0 };
        Self { groups: vec![none; places.into()], free: (0..places).rev().collect() }
    }

    /// A group of `count` parts.
    pub fn begin(&mut self, tag: u32, count: usize) -> Option<u16> {
        let index = self.free.pop()?;
        let group = Group { tag, left: count as u16, outcome: Ok(()), failed: u16::MAX };
        self.groups[usize::from(index)] = group;
        Some(index)
    }

    /// A part ended; the request's tag and outcome if it was the last one.
    pub fn end(&mut self, index: u16, number: u16, outcome: Outcome) -> Option<(u32, Outcome)> {
        let group = &mut self.groups[usize::from(index)];
        if outcome.is_err() && number < group.failed {
            (group.outcome, group.failed) = (outcome, number);
        }
        group.left -= 1;
        (group.left == 0).then(|| {
            self.free.push(index);
            (group.tag, group.outcome)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::ErrorKind;
    use nvme_spec::Nsid;
    use proptest::prelude::*;

    fn drive(data_max: u64, boundary: u64) -> Drive {
        Drive {
            nsid: Nsid(1),
            block_shift: 9,
            size: 1 << 40,
            writable: true,
            page: 4096,
            data_max,
            boundary,
            zeroes_max: 1 << 20,
            zeroes_deallocate: false,
            verify_max: 0,
            compare: true,
            volatile_cache: true,
            delays: [0; 4],
        }
    }

    fn commands(drive: &Drive, offset: u64, range: Range<u64>) -> u64 {
        let (mut at, mut count) = (range.start, 0);
        while at < range.end {
            at += drive.data_piece(offset + at, range.end - at);
            count += 1;
        }
        count
    }

    #[test]
    fn one_command_is_one_part() {
        let drive = drive(128 << 10, 0);
        for op in [Op::Read, Op::Write, Op::WriteZeroes, Op::Verify] {
            assert_eq!(cut(op, 4096, 128 << 10, &drive, 8), Parts::whole(128 << 10));
        }
        assert_eq!(cut(Op::Read, 0, 0, &drive, 8).count(), 1);
        assert_eq!(cut(Op::Copy, 0, 1 << 30, &drive, 8).count(), 1, "its chunks have an order");
        assert_eq!(cut(Op::CompareAndWrite, 0, 1 << 30, &drive, 8).count(), 1);
        assert_eq!(cut(Op::Read, 0, 1 << 20, &drive, 1).count(), 1, "no room for more");
    }

    #[test]
    fn a_long_request_goes_in_bounded_parts() {
        let drive = drive(128 << 10, 0);
        let parts = cut(Op::Read, 512, 1 << 20, &drive, 64);
        assert_eq!(parts.count(), PARTS_MAX);
        assert_eq!(parts.range(7), 7 << 17..8 << 17);
        assert_eq!(cut(Op::Deallocate, 0, 1 << 40, &drive, 64).count(), PARTS_MAX);
    }

    proptest! {
        /// Parts follow each other without gaps, and cost no command more than one run over the whole.
        #[test]
        fn parts_are_the_request(
            offset in 0_u64..4096,
            length in 1_u64..4096,
            data_max in 1_u64..64,
            boundary in prop_oneof![Just(0_u64), 1_u64..96],
            most in 1_usize..12,
            op in prop_oneof![Just(Op::Read), Just(Op::Deallocate), Just(Op::Verify)],
        ) {
            let (offset, length) = (offset << 9, length << 9);
            let drive = drive(data_max << 12, boundary << 9);
            let parts = cut(op, offset, length, &drive, most);
            prop_assert!(parts.count() <= most.min(PARTS_MAX));
            let mut at = 0;
            let mut total = 0;
            for number in 0..parts.count() {
                let range = parts.range(number);
                prop_assert!(range.start == at && range.end > at && range.end.is_multiple_of(512));
                at = range.end;
                total += commands(&drive, offset, range);
            }
            prop_assert_eq!(at, length);
            if op == Op::Read {
                prop_assert_eq!(total, commands(&drive, offset, 0..length));
            }
        }
    }

    #[test]
    fn a_request_ends_with_its_last_part_and_the_first_error() {
        let mut groups = Groups::new(2);
        let group = groups.begin(7, 3).unwrap();
        assert_eq!(groups.end(group, 2, Err(ErrorKind::Medium)), None);
        assert_eq!(groups.end(group, 1, Err(ErrorKind::OutOfRange)), None);
        assert_eq!(groups.end(group, 0, Ok(())), Some((7, Err(ErrorKind::OutOfRange))));
        assert!(groups.begin(8, 2).is_some() && groups.begin(9, 2).is_some());
        assert!(groups.begin(10, 2).is_none());
    }
}
