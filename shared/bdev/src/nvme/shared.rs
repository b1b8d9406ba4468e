//! Drives that several devices of a process have namespaces of: one connection to each, brought up by the first of them,
//! shut down with the last. With a keeper, one that a predecessor of this process had is taken over.

use super::NvmeOptions;
use super::control::CONNECT_TIMEOUT;
use super::drive::unreachable;
use super::lessor::{Graves, Quarantine};
use crate::error::Error;
use nvme_driver::transport::vfio::Keeper;
use nvme_driver::{Address, Controller, Options};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Queue pairs that are asked of a drive: one for each namespace, the others for leases. Drives grant what they have.
const QUEUES: u16 = 64;

/// The drives of this process by their addresses.
static DRIVES: Mutex<Option<HashMap<String, Weak<Shared>>>> = Mutex::new(None);

/// A drive that may have several users.
pub(super) struct Shared {
    controller: Mutex<Option<Controller>>,
    keeper: Option<Arc<dyn Keeper>>,
    /// Queue pairs of a predecessor's.
    quarantine: Mutex<Quarantine>,
    /// Queue pairs of devices that are gone.
    graves: Mutex<Graves>,
    /// How often the drive said that namespaces have changed.
    changes: AtomicU64,
    /// How often queue pairs came free.
    openings: AtomicU64,
}

impl Shared {
    /// The drive of this address, kept by `keeper` if this is its first user.
    pub fn of(target: &str, keeper: Option<&Arc<dyn Keeper>>) -> Arc<Self> {
        // Two ways of writing one address are one drive.
        let key = target.parse::<Address>().map_or(target.to_owned(), |known| known.to_string());
        let mut drives = DRIVES.lock().unwrap_or_else(PoisonError::into_inner);
        let drives = drives.get_or_insert_default();
        if let Some(shared) = drives.get(&key).and_then(Weak::upgrade) {
            return shared;
        }
        let shared = Arc::new(Self {
            controller: Mutex::new(None),
            keeper: keeper.cloned(),
            quarantine: Mutex::default(),
            graves: Mutex::default(),
            changes: AtomicU64::new(0),
            openings: AtomicU64::new(0),
        });
        drives.retain(|_, shared| shared.strong_count() > 0);
        drives.insert(key, Arc::downgrade(&shared));
        shared
    }

    fn controller(&self) -> MutexGuard<'_, Option<Controller>> {
        self.controller.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The drive's controller, brought up if it is not. Another user that does the same is waited for.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Busy`] if another process may still have it, others as it answers.
    pub fn connect(&self, options: &NvmeOptions) -> Result<Controller, Error> {
        let mut present = self.controller();
        if let Some(controller) = present.as_ref().filter(|controller| controller.is_alive()) {
            return Ok(controller.clone());
        }
        // What is left of the old one is let go of before it is connected to anew.
        *present = None;
        let driver = Options {
            connect_timeout: CONNECT_TIMEOUT,
            admin_timeout: CONNECT_TIMEOUT,
            interrupts: !options.polled,
            queues: QUEUES,
            ..Options::default()
        };
        let keeper = self.keeper.as_ref();
        let controller = Controller::connect_kept(&options.target, &driver, keeper);
        let controller = controller.map_err(|error| unreachable(&options.target, error))?;
        self.set_aside(&controller);
        *present = Some(controller.clone());
        Ok(controller)
    }

    /// Keeps the queue pairs of a predecessor's leases from being used: nobody has made one yet.
    fn set_aside(&self, controller: &Controller) {
        let inherited = controller.keeping().map(|keeping| keeping.take_inherited());
        let inherited = inherited.unwrap_or_default();
        for lease in &inherited {
            controller.reserve_queue(lease.qid);
        }
        let quarantine = Quarantine::new(inherited);
        if quarantine.len() > 0 {
            let (drive, queues) = (controller.address(), quarantine.len());
            tracing::info!(
                drive,
                queues,
                "queue pairs of a predecessor's are not used before workers let go of them"
            );
        }
        *self.quarantine() = quarantine;
        self.sift(controller);
    }

    fn quarantine(&self) -> MutexGuard<'_, Quarantine> {
        self.quarantine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn graves(&self) -> MutexGuard<'_, Graves> {
        self.graves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has queue pairs used again that nobody can ring for any more.
    pub fn sift(&self, controller: &Controller) {
        for qid in self.quarantine().sift() {
            if let Some(keeping) = controller.keeping() {
                keeping.release(qid);
            }
            controller.release_queue(qid);
            self.opened();
        }
        self.bury();
    }

    /// Lets go of queue pairs of devices that are gone, as far as nobody can ring for them any more.
    pub fn bury(&self) {
        if self.graves().bury() {
            self.opened();
        }
    }

    /// A device goes that has lent queue pairs whose workers have not let go of them.
    pub fn leave_graves(&self, left: Graves) {
        self.graves().append(left);
    }

    /// A queue pair came free.
    pub fn opened(&self) {
        self.openings.fetch_add(1, Ordering::Relaxed);
    }

    /// How often queue pairs came free.
    pub fn openings(&self) -> u64 {
        self.openings.load(Ordering::Relaxed)
    }

    /// Lets go of a controller that was given up: what it holds keeps the kernel from removing a device.
    pub fn let_go(&self) {
        let gone = self.controller().take_if(|controller| !controller.is_alive());
        drop(gone);
    }

    /// Namespaces have changed.
    pub fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
    }

    /// How often namespaces have changed.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }
}
