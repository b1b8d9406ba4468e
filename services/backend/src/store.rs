//! Memory of malloc devices in the keeper's descriptor store, so that a restart of the backend keeps the data. The
//! memory itself says which device it belongs to; the name in the store is a hash of that.

use ipc::fd_store::{FdName, FdStore, FdStoreError};
use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
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
}

impl Store {
    /// The keeper of this process and what it gave back. Once per process.
    ///
    /// # Errors
    /// If the keeper's address is unusable.
    pub fn from_environment() -> Result<Self, FdStoreError> {
        let (keeper, fds) = FdStore::from_environment()?;
        let ours = fds.into_iter().filter_map(|(name, fd)| {
            let name = FdName::parse(&name).ok().filter(|name| name.kind() == KIND)?;
            Some((name.id(), fd))
        });
        Ok(Self { keeper, returned: ours.collect() })
    }

    /// Memory that was kept for a device of this name, once.
    pub fn take(&mut self, device: &str) -> Option<OwnedFd> {
        self.returned.remove(&hash(device))
    }

    /// Has a device's new memory kept, in place of what was kept of that name. Without a keeper, or if it does not answer, its data goes with the process; that is
    /// said and nothing fails.
    pub fn keep(&mut self, device: &str, memory: BorrowedFd<'_>) {
        let kept = FdName::new(KIND, hash(device))
            .and_then(|name| self.keeper.put(&name, memory, false))
            .and_then(|()| self.keeper.barrier(BARRIER_TIMEOUT));
        if let Err(error) = kept {
            warn!(bdev = device, %error, "memory is not kept over a restart");
        }
    }

    /// Forgets the memory of all devices but these.
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

/// FNV-1a, which stays the same over versions of this program, of the compiler and of the machine.
fn hash(name: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    name.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}
