//! The keeper's descriptor store: memory of malloc devices, so that a restart of the backend keeps the data, and descriptors
//! of physical drives, so that a successor takes them over. The memory itself says which device it belongs to; its name in the
//! store is a hash of that. A drive's names say its PCI address; what it keeps, and when, is the driver's affair.

use bdev::nvme::{Keeper, PciAddress, kept_drive};
use ipc::fd_store::{FdName, FdStore, FdStoreError};
use std::collections::HashMap;
use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tracing::warn;

/// Kind of the names.
const KIND: &str = "mem";
/// How long the keeper may take to confirm.
const BARRIER_TIMEOUT: Duration = Duration::from_secs(2);

/// What is kept and what came back.
pub struct Store {
    keeper: FdStore,
    /// What a predecessor left and no device has taken yet, by its hash.
    returned: HashMap<u64, OwnedFd>,
    /// What a predecessor left of drives, and no device has taken yet.
    drives: HashMap<FdName, OwnedFd>,
}

/// The store, as drives use it.
#[derive(Clone)]
pub struct DriveStore(Arc<Mutex<Store>>);

impl Store {
    /// The keeper of this process and what it gave back. Once per process.
    ///
    /// # Errors
    /// If the keeper's address is unusable.
    pub fn from_environment() -> Result<Self, FdStoreError> {
        let (keeper, fds) = FdStore::from_environment()?;
        Ok(Self::new(keeper, fds))
    }

    fn new(keeper: FdStore, fds: Vec<(String, OwnedFd)>) -> Self {
        let (mut returned, mut drives) = (HashMap::new(), HashMap::new());
        for (name, fd) in fds {
            match FdName::parse(&name) {
                Ok(name) if name.kind() == KIND => _ = returned.insert(name.id(), fd),
                Ok(name) if kept_drive(&name).is_some() => _ = drives.insert(name, fd),
                Ok(_) | Err(_) => {}
            }
        }
        Self { keeper, returned, drives }
    }

    /// The drives of which a predecessor left something that no device has taken.
    pub fn drives(&self) -> Vec<PciAddress> {
        let mut drives: Vec<PciAddress> = self.drives.keys().filter_map(kept_drive).collect();
        drives.sort_by_key(|drive| drive.number());
        drives.dedup();
        drives
    }

    /// Memory that was kept for a device of this name, once.
    pub fn take(&mut self, device: &str) -> Option<OwnedFd> {
        self.returned.remove(&hash(device))
    }

    /// Has a device's new memory kept, in place of what was kept of that name. Without a keeper, or if it does not answer, its
    /// data goes with the process; that is said and nothing fails.
    pub fn keep(&mut self, device: &str, memory: BorrowedFd<'_>) {
        let kept = FdName::new(KIND, hash(device))
            .and_then(|name| self.keeper.put(&name, memory, false))
            .and_then(|()| self.keeper.barrier(BARRIER_TIMEOUT));
        if let Err(error) = kept {
            warn!(bdev = device, %error, "memory is not kept over a restart");
        }
    }

    /// Forgets the memory of all devices but these. Descriptors of drives stay: they are given up when a drive has been
    /// disabled.
    pub fn keep_only(&mut self, devices: &[&str]) {
        let wanted: Vec<u64> = devices.iter().map(|device| hash(device)).collect();
        self.returned.retain(|id, _| wanted.contains(id));
        let surplus = |name: &&FdName| name.kind() == KIND && !wanted.contains(&name.id());
        let surplus: Vec<FdName> = self.keeper.names().filter(surplus).cloned().collect();
        for name in surplus {
            if let Err(error) = self.keeper.remove(&name) {
                warn!(%name, %error, "memory is kept for nothing");
            }
        }
    }
}

impl DriveStore {
    /// Of this store; `None` if nobody keeps anything.
    pub fn of(store: &Arc<Mutex<Store>>) -> Option<Arc<dyn Keeper>> {
        let drives = Self(Arc::clone(store));
        let kept = drives.store().keeper.is_kept();
        kept.then(|| Arc::new(drives) as Arc<dyn Keeper>)
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keeper for DriveStore {
    fn put(&self, name: &FdName, fd: BorrowedFd<'_>) -> Result<(), FdStoreError> {
        self.store().keeper.put(name, fd, false)
    }

    fn remove(&self, name: &FdName) -> Result<(), FdStoreError> {
        let mut store = self.store();
        let kept = store.keeper.names().any(|kept| kept == name);
        if kept { store.keeper.remove(name) } else { Ok(()) }
    }

    fn settle(&self) -> Result<(), FdStoreError> {
        self.store().keeper.barrier(BARRIER_TIMEOUT)
    }

    fn take(&self, name: &FdName) -> Option<OwnedFd> {
        self.store().drives.remove(name)
    }
}

impl fmt::Debug for DriveStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DriveStore")
    }
}

/// FNV-1a, which stays the same over versions of this program, of the compiler and of the machine.
fn hash(name: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    name.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}
