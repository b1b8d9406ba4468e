//! Commands that are several requests, one after the other: Dataset Management, Copy, Flush of all namespaces. A
//! worker holds a few of these and reuses them.

use super::{COPY_BYTES, COPY_RANGE_BYTES, Io, Namespace, Ranges, range};
use crate::range_list::RangeList;
use bdev::request::Op;
use ipc::guest_memory::{Access, GuestMemory};
use nvme_spec::nvm::{CopyRange, DATASET_RANGES_MAX, DatasetRange};
use nvme_spec::{Lba, Status};
use zerocopy::FromBytes;

/// Most requests of one command: the ranges of a Dataset Management, or all namespaces of a Flush.
pub const MAX_STEPS: usize = 256;

/// Bytes of a range of Dataset Management.
pub(super) const DATASET_RANGE: u64 = size_of::<DatasetRange>() as u64;
/// Bytes of a source range of Copy.
pub(super) const COPY_RANGE: u64 = size_of::<CopyRange>() as u64;
/// Bytes of the longest list.
const LIST: usize = 4096;

const _: () = assert!(DATASET_RANGES_MAX <= MAX_STEPS);
const _: () = assert!(DATASET_RANGES_MAX * DATASET_RANGE as usize <= LIST);
const _: () = assert!(super::COPY_RANGES * COPY_RANGE as usize <= LIST);
const _: () = assert!(ipc::layout::MAX_NAMESPACES <= MAX_STEPS);

/// One request of several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Row of the namespace table.
    pub namespace: usize,
    /// What is asked of its block device.
    pub io: Io,
}

/// The requests of one command, in order.
pub struct Steps {
    steps: Box<[Step]>,
    bytes: Box<[u8; LIST]>,
    used: usize,
    next: usize,
}

impl Default for Steps {
    fn default() -> Self {
        let none = Step { namespace: 0, io: Io::new(Op::Flush, 0, 0) };
        let steps = vec![none; MAX_STEPS].into_boxed_slice();
        Self { steps, bytes: Box::new([0; LIST]), used: 0, next: 0 }
    }
}

impl Steps {
    /// Reads the ranges of a command of the namespace in row `index` out of the memory in `list`, once, and makes steps
    /// of them.
    ///
    /// # Errors
    /// The command's status, all with Do Not Retry: Data Transfer Error, LBA Out of Range, Command Size Limit Exceeded,
    /// and Invalid Field for a Copy whose source and destination overlap.
    pub fn load(
        &mut self,
        ranges: Ranges,
        index: usize,
        namespace: &Namespace,
        memory: &GuestMemory,
        list: &RangeList,
    ) -> Result<(), Status> {
        self.clear();
        let bytes = match ranges {
            Ranges::Deallocate(count) => count * DATASET_RANGE as usize,
            Ranges::Copy { count, .. } => count * COPY_RANGE as usize,
        };
        let fault = Status::DATA_TRANSFER_ERROR.with_dnr();
        let mut rest = self.bytes.get_mut(..bytes).ok_or(fault)?;
        for &range in list.ranges() {
            let (chunk, after) = rest.split_at_mut_checked(range.len as usize).ok_or(fault)?;
            memory.regions().host(range, Access::READ).ok_or(fault)?.copy_to(chunk);
            rest = after;
        }
        match ranges {
            Ranges::Deallocate(count) => self.deallocate(count, index, namespace),
            Ranges::Copy { count, destination, fua } => {
                self.copy(count, destination, fua, index, namespace)
            }
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        (self.used, self.next) = (0, 0);
    }

    /// Appends a step; more than [`MAX_STEPS`] are dropped, which no caller reaches.
    pub fn push(&mut self, step: Step) {
        if let Some(free) = self.steps.get_mut(self.used) {
            *free = step;
            self.used += 1;
        }
    }

    /// The step to do now; `None` when all are done.
    pub fn current(&self) -> Option<Step> {
        self.steps[..self.used].get(self.next).copied()
    }

    /// Whether a step that is not done is of the namespace in row `index`.
    pub fn is_left_in(&self, index: usize) -> bool {
        let left = self.steps[..self.used].get(self.next..);
        left.is_some_and(|left| left.iter().any(|step| step.namespace == index))
    }

    /// Number of steps done: what Copy answers in dword 0 if the current one failed.
    pub fn done(&self) -> u32 {
        self.next as u32
    }

    /// The current step is done.
    pub fn advance(&mut self) {
        self.next = self.used.min(self.next + 1);
    }

    fn deallocate(
        &mut self,
        count: usize,
        index: usize,
        namespace: &Namespace,
    ) -> Result<(), Status> {
        for at in 0..count {
            let entry = self.entry::<DatasetRange>(at)?;
            if entry.length == 0 {
                continue;
            }
            let (offset, length) = range(namespace, entry.slba, entry.blocks())?;
            self.push(Step { namespace: index, io: Io::new(Op::Deallocate, offset, length) });
        }
        Ok(())
    }

    fn copy(
        &mut self,
        count: usize,
        destination: Lba,
        fua: bool,
        index: usize,
        namespace: &Namespace,
    ) -> Result<(), Status> {
        let too_much = Status::COMMAND_SIZE_LIMIT_EXCEEDED.with_dnr();
        let mut target = destination;
        for at in 0..count {
            let entry = self.entry::<CopyRange>(at)?;
            let (source, length) = range(namespace, entry.slba, entry.blocks())?;
            let (offset, _) = range(namespace, target, entry.blocks())?;
            if length > COPY_RANGE_BYTES {
                return Err(too_much);
            }
            let io = Io { op: Op::Copy, fua, deallocate: false, offset, length, source };
            self.push(Step { namespace: index, io });
            target =
                target.checked_add(entry.blocks()).ok_or(Status::LBA_OUT_OF_RANGE.with_dnr())?;
        }
        let steps = &self.steps[..self.used];
        let (first, total) = (
            steps.first().map_or(0, |step| step.io.offset),
            steps.iter().map(|s| s.io.length).sum::<u64>(),
        );
        if total > COPY_BYTES {
            return Err(too_much);
        }
        // The destination as a whole: a source that an earlier step overwrites would be copied wrong when run again.
        let overlaps =
            |step: &Step| step.io.source < first + total && first < step.io.source + step.io.length;
        if steps.iter().any(overlaps) {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        Ok(())
    }

    fn entry<T: FromBytes>(&self, at: usize) -> Result<T, Status> {
        let start = at * size_of::<T>();
        self.bytes
            .get(start..start + size_of::<T>())
            .and_then(|bytes| T::read_from_bytes(bytes).ok())
            .ok_or(Status::INTERNAL_ERROR)
    }
}
