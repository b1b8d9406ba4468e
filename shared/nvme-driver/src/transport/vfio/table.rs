//! The drive table: who has which queue pair of a kept drive, and what is mapped for it ([`DriveTableLayout`]).

use std::fmt;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

use ipc::layout::drive_table::{DriveQueue, DriveTableLayout, MAX_DRIVE_QUEUES, queue_user};
use ipc::segment::{Segment, SegmentError};
use nvme_spec::QueueId;

use crate::address::PciAddress;
use crate::memory::PAGE_SIZE;

/// Why a table that was kept says nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TableError {
    #[error(transparent)]
    Segment(#[from] SegmentError),
    #[error("it belongs to another function ({found:#x})")]
    Address { found: u64 },
    #[error("its window {start:#x}..{end:#x} is none")]
    Window { start: u64, end: u64 },
    #[error("queue pair {qid} has a user {user} that does not exist")]
    User { qid: u16, user: u32 },
}

/// A worker's process, as it can be told from a later one of the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Process id; 0 if it is not visible from here.
    pub pid: i32,
    /// When it started, in the kernel's ticks since the machine did; 0 if that is not known.
    pub started: u64,
}

/// The table, mapped.
pub(super) struct DriveTable {
    segment: Segment<DriveTableLayout>,
}

impl DriveTable {
    /// A new one, for a drive whose memory is mapped within `window`.
    ///
    /// # Errors
    /// If there is no memory or descriptor left.
    pub fn create(address: PciAddress, window: Range<u64>) -> Result<Self, SegmentError> {
        let number = address.number();
        let segment = Segment::<DriveTableLayout>::create("drive-table", u128::from(number))?;
        let space = &segment.space;
        // Relaxed, all: nobody else has it yet.
        space.address.store(number, Ordering::Relaxed);
        space.window[0].store(window.start, Ordering::Relaxed);
        space.window[1].store(window.end, Ordering::Relaxed);
        Ok(Self { segment })
    }

    /// A predecessor's, of this drive. Nothing in it is believed further than it was checked.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn adopt(fd: OwnedFd, address: PciAddress) -> Result<Self, TableError> {
        let table = Self { segment: Segment::open(fd)? };
        match table.segment.space.address.load(Ordering::Relaxed) {
            found if found == address.number() => {}
            found => return Err(TableError::Address { found }),
        }
        let Range { start, end } = table.window();
        let page = PAGE_SIZE as u64;
        if start >= end || start % page != 0 || end % page != 0 {
            return Err(TableError::Window { start, end });
        }
        for (qid, row) in table.rows() {
            let user = row.user.load(Ordering::Relaxed);
            if user > queue_user::WORKER {
                return Err(TableError::User { qid: qid.0, user });
            }
        }
        Ok(table)
    }

    /// The successor begins: what the predecessor had itself is free.
    pub fn succeed(&self) {
        self.segment.header.epoch.fetch_add(1, Ordering::Relaxed);
        for (_, row) in self.rows() {
            if row.user.load(Ordering::Relaxed) == queue_user::BACKEND {
                row.user.store(queue_user::FREE, Ordering::Release);
            }
        }
    }

    /// Its descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.segment.fd()
    }

    /// Where all that is mapped lies.
    pub fn window(&self) -> Range<u64> {
        let window = &self.segment.space.window;
        window[0].load(Ordering::Relaxed)..window[1].load(Ordering::Relaxed)
    }

    /// Bytes that are mapped at least.
    pub fn mapped(&self) -> u64 {
        self.segment.space.mapped.load(Ordering::Relaxed)
    }

    /// So much was mapped.
    pub fn add(&self, len: u64) {
        self.segment.space.mapped.fetch_add(len, Ordering::Release);
    }

    /// So much is about to be unmapped.
    pub fn subtract(&self, len: u64) {
        let less = |mapped: u64| Some(mapped.saturating_sub(len));
        // Always Ok: the closure has a value for each.
        self.segment.space.mapped.fetch_update(Ordering::Release, Ordering::Relaxed, less).ok();
    }

    /// Nothing is mapped.
    pub fn clear(&self) {
        self.segment.space.mapped.store(0, Ordering::Release);
    }

    /// The backend has a queue pair itself, or nobody has it.
    pub fn set(&self, qid: QueueId, used: bool) {
        if let Some(row) = self.row(qid) {
            let user = if used { queue_user::BACKEND } else { queue_user::FREE };
            row.user.store(user, Ordering::Release);
        }
    }

    /// A worker is about to get a queue pair. `false`: the table has no row for it.
    pub fn lend(&self, qid: QueueId, holder: Holder) -> bool {
        let Some(row) = self.row(qid) else { return false };
        row.pid.store(holder.pid.cast_unsigned(), Ordering::Relaxed);
        row.started.store(holder.started, Ordering::Relaxed);
        // Release: who sees that it is a worker's sees whose.
        row.user.store(queue_user::WORKER, Ordering::Release);
        true
    }

    /// The queue pairs that workers have, and which.
    pub fn holders(&self) -> Vec<(QueueId, Holder)> {
        let lent = |&(_, row): &(QueueId, &DriveQueue)| {
            // Acquire: pairs with the Release in `lend`.
            row.user.load(Ordering::Acquire) == queue_user::WORKER
        };
        let holder = |(qid, row): (QueueId, &DriveQueue)| {
            let pid = row.pid.load(Ordering::Relaxed).cast_signed();
            (qid, Holder { pid, started: row.started.load(Ordering::Relaxed) })
        };
        self.rows().filter(lent).map(holder).collect()
    }

    /// All identifiers that are noted.
    pub fn identifiers() -> impl Iterator<Item = QueueId> {
        (1..=MAX_DRIVE_QUEUES as u16).map(QueueId)
    }

    fn rows(&self) -> impl Iterator<Item = (QueueId, &DriveQueue)> {
        Self::identifiers().zip(&self.segment.queues)
    }

    fn row(&self, qid: QueueId) -> Option<&DriveQueue> {
        self.segment.queues.get(usize::from(qid.0).checked_sub(1)?)
    }
}

impl fmt::Debug for DriveTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DriveTable({:#x} bytes mapped)", self.mapped())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Range<u64> = 4 << 30..1 << 39;

    fn address(text: &str) -> PciAddress {
        let Ok(crate::Address::Pcie(address)) = text.parse() else { panic!("{text}") };
        address
    }

    fn table() -> DriveTable {
        DriveTable::create(address("pcie:0000:03:00.1"), WINDOW).unwrap()
    }

    /// The table as a successor finds it.
    fn found(table: &DriveTable, at: &str) -> Result<DriveTable, TableError> {
        DriveTable::adopt(table.fd().try_clone_to_owned().unwrap(), address(at))
    }

    #[test]
    fn a_successor_learns_which_workers_have_which_queue_pairs() {
        let first = table();
        let holder = Holder { pid: 4711, started: 99 };
        first.set(QueueId(1), true);
        first.set(QueueId(2), true);
        assert!(first.lend(QueueId(2), holder));
        first.set(QueueId(3), true);
        assert!(first.lend(QueueId(3), holder));
        first.set(QueueId(3), false);
        assert!(!first.lend(QueueId(0), holder), "the admin queue is nobody's");
        assert!(!first.lend(QueueId(129), holder));
        let second = found(&first, "pcie:0000:03:00.1").unwrap();
        second.succeed();
        assert_eq!(second.holders(), [(QueueId(2), holder)]);
        let third = found(&first, "pcie:0000:03:00.1").unwrap();
        assert_eq!(third.holders(), [(QueueId(2), holder)], "also if that one died at once");
        assert_eq!(third.segment.queues[0].user.load(Ordering::Relaxed), queue_user::FREE);
        assert_eq!(third.segment.header.epoch.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn what_is_mapped_is_never_overstated() {
        let table = table();
        table.add(8192);
        table.subtract(4096);
        assert_eq!(found(&table, "pcie:0000:03:00.1").unwrap().mapped(), 4096);
        table.subtract(1 << 40);
        assert_eq!(table.mapped(), 0);
        table.add(4096);
        table.clear();
        assert_eq!(table.mapped(), 0);
    }

    #[test]
    fn a_table_that_is_corrupt_or_anothers_is_refused() {
        let of = |change: fn(&DriveTableLayout)| {
            let table = table();
            change(&table.segment);
            found(&table, "pcie:0000:03:00.1").map(drop)
        };
        of(|_| {}).unwrap();
        const RELAXED: Ordering = Ordering::Relaxed;
        assert!(matches!(of(|t| t.header.magic.store(0, RELAXED)), Err(TableError::Segment(_))));
        assert!(matches!(of(|t| t.header.version.store(9, RELAXED)), Err(TableError::Segment(_))));
        let user = of(|t| t.queues[6].user.store(3, RELAXED));
        assert!(matches!(user, Err(TableError::User { qid: 7, user: 3 })));
        for (start, end) in [(5, 1 << 39), (1 << 39, 1 << 39), (4096, 4097), (8192, 0)] {
            let table = table();
            table.segment.space.window[0].store(start, RELAXED);
            table.segment.space.window[1].store(end, RELAXED);
            let refused = found(&table, "pcie:0000:03:00.1").map(drop);
            assert!(matches!(refused, Err(TableError::Window { .. })), "{start:#x} {end:#x}");
        }
        let other = found(&table(), "pcie:0000:03:00.2").map(drop);
        assert!(matches!(other, Err(TableError::Address { .. })));
        let short =
            Segment::<ipc::layout::drive_lease::DriveLeaseLayout>::create("lease", 1).unwrap();
        let fd = short.fd().try_clone_to_owned().unwrap();
        assert!(DriveTable::adopt(fd, address("pcie:0000:03:00.1")).is_err(), "another segment");
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(DriveTable::adopt(null.into(), address("pcie:0000:03:00.1")).is_err());
    }
}
