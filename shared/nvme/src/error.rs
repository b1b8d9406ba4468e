//! The Error Information log of a controller: the newest errors of its admin queue and of its workers. NVMe Base 2.0c
//! 5.16.1.2.

use ipc::layout::queues::{ERROR_RECORDS, QueuesLayout};
use ipc::segment::Segment;
use nvme_spec::completion::StatusAndPhase;
use nvme_spec::log_page::error::{ErrorEntry, ParameterErrorLocation};
use nvme_spec::{CommandId, Lba, Nsid, QueueId, Status};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;

/// Entries of the log (ELPE + 1).
pub(crate) const ENTRIES: usize = 64;
/// Error Log Page Entries (ELPE), 0's based.
pub(crate) const ELPE_Z: u8 = (ENTRIES - 1) as u8;

/// The log.
#[derive(Debug, Default)]
pub(crate) struct ErrorLog {
    /// Newest first, at most [`ENTRIES`].
    entries: VecDeque<ErrorEntry>,
    /// Errors so far.
    count: u64,
    /// Records taken over, by worker.
    collected: Vec<u64>,
}

impl ErrorLog {
    /// Errors over the life of the controller.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Enters a failed command without a parameter or an LBA to point to.
    pub(crate) fn record(&mut self, sqid: QueueId, cid: CommandId, status: Status, nsid: Nsid) {
        let location = ParameterErrorLocation::NONE;
        let status = StatusAndPhase::new().with_status(status);
        self.push(ErrorEntry { sqid, cid, status, location, nsid, ..ErrorEntry::default() });
    }

    /// Takes over what a worker recorded since the last time. What it overwrote meanwhile counts, but is lost.
    pub(crate) fn collect(&mut self, worker: usize, queues: &Segment<QueuesLayout>) {
        if self.collected.len() <= worker {
            self.collected.resize(worker + 1, 0);
        }
        // Acquire: pairs with the worker's Release, after the record.
        let recorded = queues.acknowledged.error_count.load(Ordering::Acquire);
        let Some(collected) = self.collected.get_mut(worker) else { return };
        if recorded < *collected {
            // A new segment in the place of the old one.
            *collected = 0;
        }
        let first = recorded.saturating_sub(ERROR_RECORDS as u64).max(*collected);
        self.count = self.count.saturating_add(first - *collected);
        *collected = recorded;
        for number in first..recorded {
            let index = (number % ERROR_RECORDS as u64) as usize;
            let Some(record) = queues.errors.get(index) else { continue };
            let command = record.command.load(Ordering::Relaxed);
            let status = Status::from_raw(record.status.load(Ordering::Relaxed) as u16);
            self.push(ErrorEntry {
                sqid: QueueId((command >> 16) as u16),
                cid: CommandId(command as u16),
                status: StatusAndPhase::new().with_status(status),
                location: ParameterErrorLocation::from_bits(
                    record.location.load(Ordering::Relaxed) as u16,
                ),
                lba: Lba(record.lba.load(Ordering::Relaxed)),
                nsid: Nsid(record.nsid.load(Ordering::Relaxed)),
                ..ErrorEntry::default()
            });
        }
    }

    /// The log, newest first, with empty entries to its end.
    pub(crate) fn page(&self) -> [ErrorEntry; ENTRIES] {
        let mut page = [ErrorEntry::default(); ENTRIES];
        for (slot, entry) in page.iter_mut().zip(&self.entries) {
            *slot = *entry;
        }
        page
    }

    fn push(&mut self, entry: ErrorEntry) {
        self.count = self.count.saturating_add(1);
        self.entries.truncate(ENTRIES - 1);
        self.entries.push_front(ErrorEntry { error_count: self.count, ..entry });
    }
}
