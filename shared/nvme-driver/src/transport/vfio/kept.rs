//! What is kept of a drive for this process's successor: descriptors of the container, the group and the device, the drive
//! table, and the segment of each queue pair that a worker has.
//!
//! Order is what makes a death at any instruction safe. All is kept, and the keeper has said so, before the controller is
//! enabled; a worker's queue pair is noted before the worker gets it. It goes the other way round: the controller is disabled,
//! then the descriptors go, the table last. So a set that lacks something is of a controller that is disabled, and a successor
//! either completes it (the device comes out of the group) or drops it.

use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use ipc::fd_store::{FdName, FdStoreError};
use ipc::segment::SegmentError;
use nvme_spec::QueueId;

use super::table::{DriveTable, Holder, TableError};
use crate::address::PciAddress;
use crate::error::ConnectError;

/// Keeps descriptors for this process's successor.
///
/// Contract: calls may come from any thread and return within seconds. What was put comes to the process's successor, once it
/// has settled.
pub trait Keeper: fmt::Debug + Send + Sync {
    /// Has a descriptor kept, in place of what was kept by that name.
    ///
    /// # Errors
    /// It is not kept.
    fn put(&self, name: &FdName, fd: BorrowedFd<'_>) -> Result<(), FdStoreError>;

    /// Has what is kept by a name forgotten; none of it is well.
    ///
    /// # Errors
    /// It may still be kept.
    fn remove(&self, name: &FdName) -> Result<(), FdStoreError>;

    /// Waits until all that was asked for before is done.
    ///
    /// # Errors
    /// It may not be.
    fn settle(&self) -> Result<(), FdStoreError>;

    /// What a predecessor had kept by a name, once.
    fn take(&self, name: &FdName) -> Option<OwnedFd>;
}

/// What is kept of a drive, in the order in which it is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Table,
    Container,
    Group,
    Device,
}

const PARTS: [Part; 4] = [Part::Table, Part::Container, Part::Group, Part::Device];
/// Kind of the names of lease segments.
const LEASE: &str = "nvlease";

/// Why what was kept of a drive is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InheritError {
    #[error("its {0} is missing")]
    Missing(&'static str),
    #[error("its drive table is not usable")]
    Table(#[from] TableError),
    #[error(transparent)]
    Gone(#[from] ConnectError),
    #[error("{call} of what was kept")]
    System { call: &'static str, source: io::Error },
    #[error("function {found} is in its place, {kept} was kept")]
    Other { found: String, kept: String },
}

/// Why a drive is not kept.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeepError {
    #[error("make a drive table")]
    Table(#[from] SegmentError),
    #[error(transparent)]
    Store(#[from] FdStoreError),
}

/// A queue pair of a predecessor's that a worker had: its identifier is not used before that worker has let go of it.
#[derive(Debug)]
pub struct InheritedLease {
    /// Queue Identifier.
    pub qid: QueueId,
    /// The worker's process.
    pub holder: Holder,
    /// The lease segment; `None` if it is not there.
    pub segment: Option<OwnedFd>,
}

/// A drive that is kept, by the process that has it.
#[derive(Debug)]
pub struct Keeping {
    keeper: Arc<dyn Keeper>,
    address: PciAddress,
    table: DriveTable,
    inherited: Mutex<Vec<InheritedLease>>,
}

/// What a predecessor left of a drive.
#[derive(Default)]
pub(super) struct Found {
    pub table: Option<OwnedFd>,
    pub container: Option<OwnedFd>,
    pub group: Option<OwnedFd>,
    pub device: Option<OwnedFd>,
}

impl Part {
    fn kind(self) -> &'static str {
        match self {
            Self::Table => "nvtable",
            Self::Container => "nvspace",
            Self::Group => "nvgroup",
            Self::Device => "nvdrive",
        }
    }

    fn name(self, address: PciAddress) -> Result<FdName, FdStoreError> {
        FdName::new(self.kind(), address.number())
    }
}

/// The function that a kept descriptor belongs to; `None` if it is nothing of a drive's.
#[must_use]
pub fn kept_drive(name: &FdName) -> Option<PciAddress> {
    if name.kind() == LEASE {
        return PciAddress::from_number(name.id() >> 16);
    }
    let known = PARTS.iter().any(|part| part.kind() == name.kind());
    known.then(|| PciAddress::from_number(name.id())).flatten()
}

fn lease_name(address: PciAddress, qid: QueueId) -> Result<FdName, FdStoreError> {
    FdName::new(LEASE, address.number() << 16 | u64::from(qid.0))
}

impl Found {
    /// What is there of a drive; `None` if there is nothing.
    pub fn take(keeper: &dyn Keeper, address: PciAddress) -> Option<Self> {
        let mut any = false;
        let mut take = |part: Part| {
            let fd = keeper.take(&part.name(address).ok()?)?;
            any = true;
            Some(fd)
        };
        let found = Self {
            table: take(Part::Table),
            container: take(Part::Container),
            group: take(Part::Group),
            device: take(Part::Device),
        };
        any.then_some(found)
    }
}

/// Has all of a drive forgotten that a predecessor left, or that was put in part.
pub(super) fn discard(keeper: &dyn Keeper, address: PciAddress) {
    for qid in DriveTable::identifiers() {
        discard_lease(keeper, address, qid);
    }
    let removed = PARTS.iter().rev().try_for_each(|part| {
        let name = part.name(address)?;
        drop(keeper.take(&name));
        keeper.remove(&name)
    });
    if let Err(error) = removed.and_then(|()| keeper.settle()) {
        tracing::warn!(drive = %address, %error, "descriptors of the drive are kept for nothing");
    }
}

fn discard_lease(keeper: &dyn Keeper, address: PciAddress, qid: QueueId) {
    let Ok(name) = lease_name(address, qid) else { return };
    drop(keeper.take(&name));
    if let Err(error) = keeper.remove(&name) {
        tracing::debug!(drive = %address, %qid, %error, "a lease is kept for nothing");
    }
}

impl Keeping {
    /// Has a drive kept that is not enabled yet and was opened anew.
    ///
    /// # Errors
    /// [`KeepError`]; nothing is kept then.
    pub(super) fn begin(
        keeper: Arc<dyn Keeper>,
        address: PciAddress,
        window: Range<u64>,
        [container, group, device]: [BorrowedFd<'_>; 3],
    ) -> Result<Self, KeepError> {
        // Nothing of another time is taken for this one's.
        discard(&*keeper, address);
        let table = DriveTable::create(address, window)?;
        let fds = [table.fd(), container, group, device];
        let put =
            PARTS.iter().zip(fds).try_for_each(|(part, fd)| keeper.put(&part.name(address)?, fd));
        if let Err(error) = put.and_then(|()| keeper.settle()) {
            discard(&*keeper, address);
            return Err(error.into());
        }
        Ok(Self { keeper, address, table, inherited: Mutex::default() })
    }

    /// Goes on with a drive that a predecessor had kept. If the device's descriptor had not come to be kept, it is put now.
    ///
    /// # Errors
    /// [`InheritError::Table`].
    pub(super) fn adopt(
        keeper: Arc<dyn Keeper>,
        address: PciAddress,
        table: OwnedFd,
    ) -> Result<Self, InheritError> {
        let table = DriveTable::adopt(table, address)?;
        let holders = table.holders();
        let mut inherited = Vec::with_capacity(holders.len());
        for qid in DriveTable::identifiers() {
            match holders.iter().find(|(lent, _)| *lent == qid) {
                Some(&(qid, holder)) => {
                    let segment = lease_name(address, qid).ok().and_then(|name| keeper.take(&name));
                    inherited.push(InheritedLease { qid, holder, segment });
                }
                None => discard_lease(&*keeper, address, qid),
            }
        }
        table.succeed();
        Ok(Self { keeper, address, table, inherited: Mutex::new(inherited) })
    }

    /// Has one part kept that is not.
    pub(super) fn put(&self, part: Part, fd: BorrowedFd<'_>) -> Result<(), FdStoreError> {
        self.keeper.put(&part.name(self.address)?, fd)?;
        self.keeper.settle()
    }

    /// The drive does nothing more: nothing of it need be kept.
    pub(super) fn forget(&self) {
        discard(&*self.keeper, self.address);
    }

    pub(super) fn table(&self) -> &DriveTable {
        &self.table
    }

    /// This process has a queue pair itself, or nobody has it.
    pub(crate) fn note(&self, qid: QueueId, used: bool) {
        self.table.set(qid, used);
    }

    /// Notes, and has it kept, that a worker is about to get a queue pair, with its lease segment.
    ///
    /// # Errors
    /// The segment is not kept: a successor waits for the worker's death before it uses the identifier again.
    pub fn lend(
        &self,
        qid: QueueId,
        holder: Holder,
        segment: BorrowedFd<'_>,
    ) -> Result<(), FdStoreError> {
        let name = lease_name(self.address, qid)?;
        let kept = self.keeper.put(&name, segment).and_then(|()| self.keeper.settle());
        self.table.lend(qid, holder);
        kept
    }

    /// Notes that no worker rings a queue pair's doorbells any more. To be called before the identifier is used again.
    pub fn release(&self, qid: QueueId) {
        self.table.set(qid, false);
        let removed = lease_name(self.address, qid).and_then(|name| self.keeper.remove(&name));
        if let Err(error) = removed {
            tracing::warn!(drive = %self.address, %qid, %error, "a lease is kept for nothing");
        }
    }

    /// The queue pairs that workers had of the predecessor, once.
    #[must_use]
    pub fn take_inherited(&self) -> Vec<InheritedLease> {
        std::mem::take(&mut *self.inherited.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Vfio, retire};
    use super::*;
    use crate::{Controller, Options};
    use ipc::layout::drive_lease::DriveLeaseLayout;
    use ipc::segment::Segment;
    use std::collections::BTreeMap;
    use std::os::fd::AsFd;

    /// A keeper in this process; what is put comes back to who asks as a successor.
    #[derive(Debug, Default)]
    struct Shelf {
        kept: Mutex<BTreeMap<FdName, OwnedFd>>,
        left: Mutex<BTreeMap<FdName, OwnedFd>>,
        /// Puts that are still taken.
        room: Mutex<usize>,
    }

    impl Shelf {
        fn with_room(room: usize) -> Arc<Self> {
            Arc::new(Self { room: Mutex::new(room), ..Self::default() })
        }

        /// As its process's successor has it.
        fn succeed(&self) {
            let kept = self.kept.lock().unwrap();
            let again = kept.iter().map(|(name, fd)| (name.clone(), fd.try_clone().unwrap()));
            *self.left.lock().unwrap() = again.collect();
        }

        fn kinds(&self) -> Vec<String> {
            self.kept.lock().unwrap().keys().map(|name| name.kind().to_owned()).collect()
        }
    }

    impl Keeper for Shelf {
        fn put(&self, name: &FdName, fd: BorrowedFd<'_>) -> Result<(), FdStoreError> {
            let mut room = self.room.lock().unwrap();
            *room = room.checked_sub(1).ok_or(FdStoreError::Full)?;
            self.kept.lock().unwrap().insert(name.clone(), fd.try_clone_to_owned().unwrap());
            Ok(())
        }

        fn remove(&self, name: &FdName) -> Result<(), FdStoreError> {
            self.kept.lock().unwrap().remove(name);
            Ok(())
        }

        fn settle(&self) -> Result<(), FdStoreError> {
            Ok(())
        }

        fn take(&self, name: &FdName) -> Option<OwnedFd> {
            self.left.lock().unwrap().remove(name)
        }
    }

    const ADDRESS: PciAddress = PciAddress { domain: 0x10000, bus: 3, device: 31, function: 7 };
    const HOLDER: Holder = Holder { pid: 17, started: 4 };

    fn begin(shelf: &Arc<Shelf>) -> Result<Keeping, KeepError> {
        let null = std::fs::File::open("/dev/null").unwrap();
        let fds = [null.as_fd(); 3];
        Keeping::begin(shelf.clone(), ADDRESS, 4096..8192, fds)
    }

    fn lease() -> Segment<DriveLeaseLayout> {
        Segment::create("lease", 1).unwrap()
    }

    #[test]
    fn names_say_which_drive_they_belong_to_and_fit_the_store() {
        let highest = PciAddress { domain: u32::MAX, bus: 255, device: 31, function: 7 };
        for address in [ADDRESS, highest] {
            for part in PARTS {
                assert_eq!(kept_drive(&part.name(address).unwrap()), Some(address));
            }
            assert_eq!(kept_drive(&lease_name(address, QueueId(u16::MAX)).unwrap()), Some(address));
        }
        assert_eq!(kept_drive(&FdName::new("mem", 7).unwrap()), None);
        assert_eq!(kept_drive(&FdName::new("nvtable", 1 << 48).unwrap()), None);
    }

    #[test]
    fn a_drive_is_kept_whole_or_not_at_all() {
        for room in 0..4 {
            let shelf = Shelf::with_room(room);
            assert!(matches!(begin(&shelf), Err(KeepError::Store(FdStoreError::Full))));
            assert!(shelf.kinds().is_empty(), "{room} parts were put, and none stays");
        }
        let shelf = Shelf::with_room(4);
        let keeping = begin(&shelf).unwrap();
        assert_eq!(shelf.kinds(), ["nvdrive", "nvgroup", "nvspace", "nvtable"]);
        keeping.forget();
        assert!(shelf.kinds().is_empty());
    }

    #[test]
    fn a_successor_gets_leases_and_those_of_free_queue_pairs_go() {
        let shelf = Shelf::with_room(16);
        let first = begin(&shelf).unwrap();
        let (kept, freed) = (lease(), lease());
        for (qid, segment) in [(2, &kept), (3, &freed)] {
            first.note(QueueId(qid), true);
            first.lend(QueueId(qid), HOLDER, segment.fd()).unwrap();
        }
        // Its process dies between the two things that `release` does.
        first.note(QueueId(3), false);
        shelf.succeed();
        let found = Found::take(&*shelf, ADDRESS).unwrap();
        let second = Keeping::adopt(shelf.clone(), ADDRESS, found.table.unwrap()).unwrap();
        let inherited = second.take_inherited();
        assert_eq!(inherited.len(), 1);
        assert_eq!((inherited[0].qid, inherited[0].holder), (QueueId(2), HOLDER));
        assert!(inherited[0].segment.is_some());
        assert!(second.take_inherited().is_empty(), "once");
        assert_eq!(shelf.kinds().iter().filter(|kind| *kind == LEASE).count(), 1);
        second.release(QueueId(2));
        assert_eq!(shelf.kinds(), ["nvdrive", "nvgroup", "nvspace", "nvtable"]);
        second.forget();
        shelf.succeed();
        assert!(Found::take(&*shelf, ADDRESS).is_none());
    }

    #[test]
    fn a_lease_that_cannot_be_kept_is_noted_all_the_same() {
        let shelf = Shelf::with_room(4);
        let first = begin(&shelf).unwrap();
        assert!(first.lend(QueueId(2), HOLDER, lease().fd()).is_err());
        shelf.succeed();
        let found = Found::take(&*shelf, ADDRESS).unwrap();
        let second = Keeping::adopt(shelf.clone(), ADDRESS, found.table.unwrap()).unwrap();
        let inherited = second.take_inherited();
        assert_eq!((inherited.len(), inherited[0].qid), (1, QueueId(2)));
        assert!(inherited[0].segment.is_none(), "only its death tells");
    }

    #[test]
    fn what_is_kept_of_a_function_that_is_gone_is_not_kept_any_more() {
        let shelf = Shelf::with_room(16);
        let keeper: Arc<dyn Keeper> = shelf.clone();
        for again in [false, true] {
            begin(&shelf).unwrap().lend(QueueId(2), HOLDER, lease().fd()).unwrap();
            shelf.succeed();
            if again {
                assert!(retire(ADDRESS, &keeper));
            } else {
                let error = Vfio::inherit(ADDRESS, &keeper).unwrap().unwrap_err();
                assert!(matches!(error, InheritError::Gone(ConnectError::NoDevice { .. })));
            }
            assert!(shelf.kinds().is_empty());
            assert!(Vfio::inherit(ADDRESS, &keeper).is_none(), "once");
        }
        assert!(!retire(ADDRESS, &keeper));
        begin(&shelf).unwrap();
        shelf.succeed();
        let address = format!("pcie:{ADDRESS}");
        let connected = Controller::connect_kept(&address, &Options::default(), Some(&keeper));
        assert!(matches!(connected, Err(ConnectError::NoDevice { .. })), "as without");
        assert!(shelf.kinds().is_empty());
    }

    #[test]
    fn a_set_in_part_is_seen_as_what_it_is() {
        let shelf = Shelf::with_room(4);
        let keeping = begin(&shelf).unwrap();
        shelf.remove(&Part::Device.name(ADDRESS).unwrap()).unwrap();
        shelf.succeed();
        let found = Found::take(&*shelf, ADDRESS).unwrap();
        assert!(found.table.is_some() && found.group.is_some() && found.device.is_none());
        assert!(Found::take(&*shelf, ADDRESS).is_none(), "once");
        drop(keeping);
        discard(&*shelf, ADDRESS);
        assert!(shelf.kinds().is_empty());
    }
}
