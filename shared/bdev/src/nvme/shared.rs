//! Drives that several devices of a process have namespaces of: one connection to each, brought up by the first of them,
//! shut down with the last.

use super::NvmeOptions;
use super::control::{CONNECT_TIMEOUT, unreachable};
use crate::error::Error;
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
    /// How often the drive said that namespaces have changed.
    changes: AtomicU64,
}

impl Shared {
    /// The drive of this address.
    pub fn of(target: &str) -> Arc<Self> {
        // Two ways of writing one address are one drive.
        let key = target.parse::<Address>().map_or(target.to_owned(), |known| known.to_string());
        let mut drives = DRIVES.lock().unwrap_or_else(PoisonError::into_inner);
        let drives = drives.get_or_insert_default();
        if let Some(shared) = drives.get(&key).and_then(Weak::upgrade) {
            return shared;
        }
        let shared = Arc::new(Self { controller: Mutex::new(None), changes: AtomicU64::new(0) });
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
        let controller = Controller::connect_with(&options.target, &driver).map_err(unreachable)?;
        *present = Some(controller.clone());
        Ok(controller)
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
