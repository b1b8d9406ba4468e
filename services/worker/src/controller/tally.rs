//! Counters of namespaces. On the hot path: a batch is summed up before it is stored.

use super::Controller;
use bdev::request::Op;
use ipc::sync::{AtomicU64, Ordering};
use nvme_spec::Status;
use nvme_spec::status::StatusCodeType;

/// Reads and writes of one namespace that are not in its counters yet.
#[derive(Default)]
pub(super) struct Tally {
    row: usize,
    reads: u64,
    writes: u64,
    read_bytes: u64,
    written_bytes: u64,
}

impl Controller {
    /// Counts a request that succeeded.
    #[inline(always)]
    pub(super) fn tally(&mut self, row: usize, op: Op, bytes: u64) {
        if self.tallied.row != row {
            self.flush_tally();
            self.tallied.row = row;
        }
        match op {
            Op::Read => {
                self.tallied.reads += 1;
                self.tallied.read_bytes += bytes;
            }
            Op::Write => {
                self.tallied.writes += 1;
                self.tallied.written_bytes += bytes;
            }
            _ => self.count(row, op, bytes, Status::SUCCESS),
        }
    }

    /// Stores what was summed up.
    #[inline]
    pub(super) fn flush_tally(&mut self) {
        let Tally { row, reads, writes, read_bytes, written_bytes } = self.tallied;
        if reads + writes == 0 {
            return;
        }
        self.tallied = Tally { row, ..Tally::default() };
        let Some(counters) = self.queues.counters.get(row) else { return };
        if reads > 0 {
            add(&counters.reads, reads);
            add(&counters.read_bytes, read_bytes);
        }
        if writes > 0 {
            add(&counters.writes, writes);
            add(&counters.written_bytes, written_bytes);
        }
    }

    /// Counts a request of any kind.
    #[inline(never)]
    pub(super) fn count(&self, row: usize, op: Op, bytes: u64, status: Status) {
        let Some(counters) = self.queues.counters.get(row) else { return };
        if !status.is_success() {
            add(&counters.errors, 1);
            if status.sct() == StatusCodeType::MEDIA && status.code() != Status::COMPARE_FAILURE {
                add(&counters.media_errors, 1);
            }
        }
        match op {
            Op::Read => {
                add(&counters.reads, 1);
                add(&counters.read_bytes, bytes);
            }
            Op::Compare | Op::Verify => add(&counters.reads, 1),
            Op::Write | Op::CompareAndWrite => {
                add(&counters.writes, 1);
                add(&counters.written_bytes, bytes);
            }
            Op::Flush | Op::WriteZeroes | Op::Deallocate | Op::Copy => add(&counters.others, 1),
        }
    }
}

/// Adds to a counter with one writer: a load and a store do.
#[inline(always)]
fn add(counter: &AtomicU64, value: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(value), Ordering::Relaxed);
}
