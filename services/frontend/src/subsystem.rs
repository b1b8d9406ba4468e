//! A subsystem as the controllers of this process share it: the namespaces, what is stored of them, and the news of
//! their change.

use crate::limits::SharedLimits;
use crate::pause::NamespacePauses;
use crate::store::{Changes, Store, StoreError};
use nvme::{NamespaceConfig, Subsystem, SubsystemError};
use nvme_spec::Nsid;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// A shared subsystem.
pub struct SharedSubsystem {
    name: String,
    subsystem: Arc<Mutex<Subsystem>>,
    store: Mutex<Store>,
    changes: watch::Sender<u64>,
    resets: watch::Sender<u64>,
    bdevs: Mutex<Bdevs>,
    limits: SharedLimits,
    pauses: NamespacePauses,
}

/// Names of block devices by that of their backend.
pub type Bdevs = BTreeMap<String, BTreeSet<String>>;

impl SharedSubsystem {
    /// A subsystem and the file of what its hosts changed.
    pub fn new(name: String, subsystem: Subsystem, store: Store) -> Self {
        Self {
            limits: SharedLimits::new(&name),
            name,
            subsystem: Arc::new(Mutex::new(subsystem)),
            store: Mutex::new(store),
            changes: watch::Sender::new(0),
            resets: watch::Sender::new(0),
            bdevs: Mutex::default(),
            pauses: NamespacePauses::default(),
        }
    }

    /// Its name in the configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its namespaces and controllers may do.
    pub fn limits(&self) -> &SharedLimits {
        &self.limits
    }

    /// Which of its namespaces are paused.
    pub fn pauses(&self) -> &NamespacePauses {
        &self.pauses
    }

    /// The subsystem, for its controllers.
    pub fn subsystem(&self) -> &Arc<Mutex<Subsystem>> {
        &self.subsystem
    }

    /// The subsystem itself; not to be held across an await.
    pub fn lock(&self) -> MutexGuard<'_, Subsystem> {
        crate::function::lock(&self.subsystem)
    }

    /// What a host changed of a namespace.
    pub fn stored(&self, nsid: u32, bdev: &str) -> Changes {
        self.store.lock().unwrap_or_else(PoisonError::into_inner).changes(nsid, bdev)
    }

    /// Stores a change of a namespace durably.
    ///
    /// # Errors
    /// [`StoreError`]; nothing changed.
    pub fn change(
        &self,
        nsid: u32,
        bdev: &str,
        change: impl FnOnce(&mut Changes),
    ) -> Result<(), StoreError> {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changes = store.changes(nsid, bdev);
        change(&mut changes);
        store.put(nsid, changes)
    }

    /// The block devices that controllers may have requests under way to: those of the namespaces, and of removed ones
    /// until [`SharedSubsystem::forget_bdevs`].
    pub fn bdevs(&self) -> Bdevs {
        let subsystem = self.lock();
        let mut bdevs = self.bdevs.lock().unwrap_or_else(PoisonError::into_inner);
        note(&mut bdevs, &subsystem);
        bdevs.clone()
    }

    /// Removes a namespace; its block device counts among [`SharedSubsystem::bdevs`] further on.
    ///
    /// # Errors
    /// [`SubsystemError`].
    pub fn remove_namespace(&self, nsid: Nsid) -> Result<(), SubsystemError> {
        self.bdevs();
        self.lock().remove_namespace(nsid)?;
        self.pauses.forget(nsid);
        Ok(())
    }

    /// Nothing is in flight to namespaces that were removed.
    pub fn forget_bdevs(&self) {
        let subsystem = self.lock();
        let mut bdevs = self.bdevs.lock().unwrap_or_else(PoisonError::into_inner);
        bdevs.clear();
        note(&mut bdevs, &subsystem);
    }

    /// Tells every controller that namespaces changed. Returns the change's number.
    pub fn announce_change(&self) -> u64 {
        self.changes.send_modify(|number| *number += 1);
        *self.changes.borrow()
    }

    /// Has every controller of the subsystem reset.
    pub fn announce_reset(&self) {
        self.resets.send_modify(|number| *number += 1);
    }

    /// Changes, by number.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Subsystem resets, by number.
    pub fn resets(&self) -> watch::Receiver<u64> {
        self.resets.subscribe()
    }
}

fn note(bdevs: &mut Bdevs, subsystem: &Subsystem) {
    for (_, namespace) in subsystem.namespaces() {
        let NamespaceConfig { backend, bdev, .. } = namespace.config();
        bdevs.entry(backend.clone()).or_default().insert(bdev.clone());
    }
}
