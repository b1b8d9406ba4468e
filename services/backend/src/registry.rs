//! The block devices that a backend owns, as its control side knows them. Nothing here waits.

use crate::lease::Leases;
use crate::serve::{Command, DeviceKey, Handle, Stopped, Unanswered};
use bdev::error::{Error, ErrorKind};
use bdev::nvme::NvmeFeatures;
use bdev::request::Op;
use ipc::device_memory::DeviceMemory;
use std::collections::BTreeMap;
use std::sync::Arc;
use vireo_proto::Failure;
use vireo_proto::handoff::{Bdev, BdevInfo, ChannelPreference};

/// Smallest logical block.
pub(crate) const SMALLEST_BLOCK: u32 = 512;
/// Bytes erased between two looks at other work.
const ERASE_STEP: u64 = 64 << 20;

/// The devices by name.
#[derive(Default)]
pub struct Registry {
    devices: BTreeMap<String, Device>,
    last_key: DeviceKey,
}

/// One device.
pub struct Device {
    /// Its key in the serve loop.
    pub key: DeviceKey,
    /// As the manager wants it.
    pub wanted: Bdev,
    /// Bytes.
    pub size: u64,
    /// What it is.
    pub kind: Kind,
    /// Smallest block in bytes that requests may have.
    pub minimum_block_size: u32,
}

/// What a device is.
pub enum Kind {
    /// Nothing, with a latency in nanoseconds.
    Null {
        /// Nanoseconds.
        latency: u64,
    },
    /// Memory and its leases.
    Malloc {
        /// The memory at its present size.
        memory: Arc<DeviceMemory>,
        /// Its lease numbers.
        leases: Leases,
    },
    /// A file, read-only or not.
    File {
        /// Writes are refused.
        read_only: bool,
    },
    /// An NVMe drive.
    Nvme {
        /// Writes are refused: by configuration, or the drive is write protected.
        read_only: bool,
        /// What the drive offers.
        features: NvmeFeatures,
    },
}

/// What the control side may want of a whole device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maintenance {
    /// What was written becomes durable.
    Flush,
    /// Every byte becomes zero.
    Erase,
}

/// Work on a whole device.
pub enum Errand {
    /// There is nothing to do.
    Nothing,
    /// The memory is given back.
    Punch(Arc<DeviceMemory>),
    /// The serve loop's device does it.
    Serve {
        /// The loop.
        serve: Handle,
        /// The device.
        key: DeviceKey,
        /// Its name, for errors.
        name: String,
        /// What it does.
        op: Op,
    },
}

impl Errand {
    /// Does it. May take long.
    ///
    /// # Errors
    /// What the device says.
    pub async fn run(self) -> Result<(), Failure> {
        match self {
            Self::Nothing => Ok(()),
            Self::Punch(memory) => {
                let punch = move || {
                    let size = memory.size();
                    let mut starts = (0..size).step_by(ERASE_STEP as usize);
                    starts.try_for_each(|start| memory.punch(start, ERASE_STEP.min(size - start)))
                };
                blocking(punch).await?.map_err(|error| Failure::internal(&error))
            }
            Self::Serve { serve, key, name, op } => {
                let outcome = serve.ask(|done| Command::Maintain { device: key, op, done }).await;
                let failed = |kind: ErrorKind| {
                    failure(&Error::new(kind, format!("{op:?} of bdev \"{name}\": {kind}")))
                };
                outcome.map_err(stopped)?.map_err(failed)
            }
        }
    }
}

impl Device {
    /// The driver's name.
    pub fn driver(&self) -> &'static str {
        match self.kind {
            Kind::Null { .. } => "null",
            Kind::Malloc { .. } => "malloc",
            Kind::File { .. } => "file",
            Kind::Nvme { .. } => "nvme",
        }
    }

    /// Whether writes are refused.
    pub fn read_only(&self) -> bool {
        matches!(self.kind, Kind::File { read_only: true } | Kind::Nvme { read_only: true, .. })
    }

    /// Whether workers get a lease of it.
    pub fn leased(&self) -> bool {
        let offered = !matches!(self.kind, Kind::File { .. });
        self.wanted.channel() != ChannelPreference::Ring && offered
    }

    fn info(&self) -> BdevInfo {
        let (volatile_cache, deallocate) = match self.kind {
            Kind::Null { .. } => (false, false),
            Kind::Malloc { .. } => (false, true),
            Kind::File { .. } => (true, true),
            Kind::Nvme { features, .. } => (features.volatile_cache, features.deallocate),
        };
        BdevInfo {
            bdev: self.wanted.name.clone(),
            size_bytes: self.size,
            block_size: match self.wanted.block_size {
                0 => self.minimum_block_size,
                size => size.max(SMALLEST_BLOCK),
            },
            read_only: self.read_only(),
            volatile_cache,
            deallocate,
            minimum_block_size: self.minimum_block_size,
            driver: self.driver().to_owned(),
        }
    }
}

impl Registry {
    /// All devices in the order of their names.
    pub fn devices(&self) -> impl Iterator<Item = &Device> {
        self.devices.values()
    }

    /// A device.
    ///
    /// # Errors
    /// Not found.
    pub fn device_mut(&mut self, name: &str) -> Result<&mut Device, Failure> {
        let missing = || Failure::not_found(format!("there is no bdev \"{name}\" here"));
        self.devices.get_mut(name).ok_or_else(missing)
    }

    /// The device of this name, if it is still this one and no successor.
    pub fn same_device(&mut self, name: &str, key: DeviceKey) -> Option<&mut Device> {
        self.devices.get_mut(name).filter(|device| device.key == key)
    }

    /// A key for another device.
    pub fn new_key(&mut self) -> DeviceKey {
        self.last_key += 1;
        self.last_key
    }

    /// Takes a device up under its name.
    pub fn insert(&mut self, device: Device) {
        self.devices.insert(device.wanted.name.clone(), device);
    }

    /// Takes out all devices but those of these names.
    pub fn take_all_but(&mut self, names: &[String]) -> Vec<Device> {
        let surplus: Vec<String> =
            self.devices.keys().filter(|name| !names.contains(name)).cloned().collect();
        surplus.iter().filter_map(|name| self.devices.remove(name)).collect()
    }

    /// A device's properties.
    ///
    /// # Errors
    /// Not found.
    pub fn describe(&mut self, name: &str) -> Result<BdevInfo, Failure> {
        self.device_mut(name).map(|device| device.info())
    }

    /// How a device is flushed or erased; run it without holding the registry.
    ///
    /// # Errors
    /// Not found, or a device that cannot be written.
    pub fn maintenance(
        &mut self,
        serve: &Handle,
        name: &str,
        op: Maintenance,
    ) -> Result<Errand, Failure> {
        let serve = serve.clone();
        let device = self.device_mut(name)?;
        let name = name.to_owned();
        match (&device.kind, op) {
            (
                Kind::File { read_only: true } | Kind::Nvme { read_only: true, .. },
                Maintenance::Erase,
            ) => Err(Failure::precondition(format!("bdev \"{name}\" is read-only"))),
            (Kind::Malloc { memory, .. }, Maintenance::Erase) => Ok(Errand::Punch(memory.clone())),
            // Nothing is stored, or nothing is more durable than it is already.
            (Kind::Null { .. } | Kind::Malloc { .. }, _) => Ok(Errand::Nothing),
            (Kind::File { .. } | Kind::Nvme { .. }, Maintenance::Erase) => {
                Ok(Errand::Serve { serve, key: device.key, name, op: Op::Deallocate })
            }
            (Kind::File { .. } | Kind::Nvme { .. }, Maintenance::Flush) => {
                Ok(Errand::Serve { serve, key: device.key, name, op: Op::Flush })
            }
        }
    }

    /// Frees the lease numbers of workers that are dead; whether some are left that are not.
    pub fn reap_leases(&mut self) -> bool {
        let mut left = false;
        for device in self.devices.values_mut() {
            if let Kind::Malloc { memory, leases } = &mut device.kind {
                left |= leases.reap(memory);
            }
        }
        left
    }
}

/// Runs what may block on a thread of its own.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Failure::internal(&error))
}

/// A device's error as an answer.
pub fn failure(error: &Error) -> Failure {
    let text = Failure::internal(error);
    let text = text.message();
    match error.kind {
        ErrorKind::Invalid | ErrorKind::OutOfRange => Failure::invalid(text),
        ErrorKind::ReadOnly => Failure::precondition(text),
        ErrorKind::NoSpace => Failure::exhausted(text),
        ErrorKind::Busy | ErrorKind::Gone => Failure::unavailable(text),
        ErrorKind::Unsupported => Failure::new(vireo_proto::ErrorCode::Unsupported, text),
        ErrorKind::Medium | ErrorKind::CompareFailed | ErrorKind::Fault | ErrorKind::Internal => {
            Failure::internal(error)
        }
    }
}

/// The serve loop has ended under us.
pub fn stopped(_: Stopped) -> Failure {
    Failure::unavailable("the serve loop has ended")
}

/// The serve loop has ended under us, or does not do `what` in time.
pub fn unanswered(why: Unanswered, what: &str) -> Failure {
    match why {
        Unanswered::Stopped => stopped(Stopped),
        Unanswered::Late => Failure::unavailable(what),
    }
}
