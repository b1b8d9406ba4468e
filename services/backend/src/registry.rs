//! The block devices that a backend owns: made, grown and closed as the manager wants them.

use crate::lease::Leases;
use crate::serve::{Command, DeviceKey, Handle, Resize};
use crate::store::Store;
use bdev::channel::{AnyChannel, Channel, Geometry};
use bdev::error::{Error, ErrorKind};
use bdev::file::{FileDevice, FileOptions};
use bdev::malloc::MallocChannel;
use bdev::null::NullChannel;
use bdev::request::Op;
use ipc::device_memory::DeviceMemory;
use std::collections::BTreeMap;
use std::sync::Arc;
use tracing::info;
use vireo_proto::Failure;
use vireo_proto::handoff::bdev::Driver;
use vireo_proto::handoff::{
    ApplyBdevs, ApplyFailure, ApplyResult, Bdev, BdevInfo, ChannelPreference, FileDriver,
};

/// Smallest logical block.
const SMALLEST_BLOCK: u32 = 512;
/// Bytes erased between two looks at other work.
const ERASE_STEP: u64 = 64 << 20;

/// The devices by name.
pub struct Registry {
    serve: Handle,
    store: Store,
    devices: BTreeMap<String, Device>,
    next_key: DeviceKey,
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
        }
    }

    /// Whether writes are refused.
    pub fn read_only(&self) -> bool {
        matches!(self.kind, Kind::File { read_only: true })
    }

    /// Whether workers get a lease of it.
    pub fn leased(&self) -> bool {
        self.wanted.channel() != ChannelPreference::Ring && !matches!(self.kind, Kind::File { .. })
    }

    fn info(&self) -> BdevInfo {
        let file = matches!(self.kind, Kind::File { .. });
        BdevInfo {
            bdev: self.wanted.name.clone(),
            size_bytes: self.size,
            block_size: self.wanted.block_size.max(SMALLEST_BLOCK),
            read_only: self.read_only(),
            volatile_cache: file,
            deallocate: !matches!(self.kind, Kind::Null { .. }),
            minimum_block_size: self.minimum_block_size,
            driver: self.driver().to_owned(),
        }
    }
}

impl Registry {
    /// An empty registry. Memory that a predecessor left in the store is taken when its device is wanted.
    pub fn new(serve: Handle, store: Store) -> Self {
        Self { serve, store, devices: BTreeMap::new(), next_key: 1 }
    }

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

    /// A device's properties.
    ///
    /// # Errors
    /// Not found.
    pub fn describe(&mut self, name: &str) -> Result<BdevInfo, Failure> {
        self.device_mut(name).map(|device| device.info())
    }

    /// Makes the devices what is wanted. What cannot be done is told, the rest is done.
    pub async fn apply(&mut self, wanted: ApplyBdevs) -> Result<ApplyResult, Failure> {
        let mut failures = Vec::new();
        let names: Vec<&str> = wanted.bdevs.iter().map(|bdev| bdev.name.as_str()).collect();
        let surplus = self.devices.keys().filter(|name| !names.contains(&name.as_str()));
        for name in surplus.cloned().collect::<Vec<String>>() {
            self.remove(&name).await?;
        }
        // What is not wanted any more; what is wanted and not there yet may be kept for it.
        self.store.keep_only(&names);
        for bdev in wanted.bdevs {
            let object = format!("bdev {}", bdev.name);
            let done = match self.devices.contains_key(&bdev.name) {
                true => self.change(bdev).await,
                false => self.add(bdev).await,
            };
            if let Err(failure) = done {
                tracing::warn!(object, error = failure.message(), "not as wanted");
                failures.push(ApplyFailure { object, message: failure.message().to_owned() });
            }
        }
        Ok(ApplyResult { failures })
    }

    /// How a device is flushed or erased; run it without holding the registry.
    ///
    /// # Errors
    /// Not found, or a device that cannot be written.
    pub fn maintenance(&mut self, name: &str, op: Maintenance) -> Result<Errand, Failure> {
        let serve = self.serve.clone();
        let device = self.device_mut(name)?;
        let name = name.to_owned();
        match (&device.kind, op) {
            (Kind::File { read_only: true }, Maintenance::Erase) => {
                Err(Failure::precondition(format!("bdev \"{name}\" is read-only")))
            }
            (Kind::Malloc { memory, .. }, Maintenance::Erase) => Ok(Errand::Punch(memory.clone())),
            // Nothing is stored, or nothing is more durable than it is already.
            (Kind::Null { .. } | Kind::Malloc { .. }, _) => Ok(Errand::Nothing),
            (Kind::File { .. }, Maintenance::Erase) => {
                Ok(Errand::Serve { serve, key: device.key, name, op: Op::Deallocate })
            }
            (Kind::File { .. }, Maintenance::Flush) => {
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

    async fn add(&mut self, wanted: Bdev) -> Result<(), Failure> {
        let key = self.next_key;
        let missing = || Failure::invalid(format!("bdev \"{}\" has no driver", wanted.name));
        let (channel, device) = match wanted.driver.clone().ok_or_else(missing)? {
            Driver::Null(null) => null_device(key, wanted, null.latency_ns)?,
            Driver::Malloc(_) => self.malloc_device(key, wanted).await?,
            Driver::File(file) => file_device(key, wanted, file).await?,
        };
        self.next_key += 1;
        let command = Command::AddDevice { device: key, channel: Box::new(channel) };
        self.serve.send(command).await.map_err(stopped)?;
        let name = device.wanted.name.clone();
        info!(bdev = name, driver = device.driver(), size = device.size, "device opened");
        self.devices.insert(name, device);
        Ok(())
    }

    async fn malloc_device(
        &mut self,
        key: DeviceKey,
        wanted: Bdev,
    ) -> Result<(AnyChannel, Device), Failure> {
        check_size(&wanted)?;
        let kept = self.store.take(&wanted.name);
        let name = wanted.name.clone();
        let size = wanted.size_bytes;
        let (memory, adopted) = blocking(move || memory_of(&name, size, kept)).await??;
        if !adopted {
            self.store.keep(&wanted.name, memory.fd());
        }
        let memory = Arc::new(memory);
        let mut leases = Leases::adopt(&memory);
        leases.reap(&memory);
        let channel = MallocChannel::owner(memory.clone(), false, leases.bound());
        let size = memory.size();
        let kind = Kind::Malloc { memory, leases };
        let device = Device { key, wanted, size, kind, minimum_block_size: SMALLEST_BLOCK };
        Ok((AnyChannel::Malloc(channel), device))
    }

    async fn change(&mut self, wanted: Bdev) -> Result<(), Failure> {
        let serve = self.serve.clone();
        let device = self.device_mut(&wanted.name)?;
        let name = wanted.name.clone();
        if device.wanted.driver != wanted.driver {
            let text =
                format!("bdev \"{name}\" is there with another driver or path; remove it first");
            return Err(Failure::exists(text));
        }
        if wanted.size_bytes != 0 && wanted.size_bytes < device.size {
            let text = format!(
                "bdev \"{name}\" has {} bytes and does not shrink to {}",
                device.size, wanted.size_bytes
            );
            return Err(Failure::precondition(text));
        }
        let resize = match &device.kind {
            // The file itself may have grown.
            Kind::File { .. } => Some(Resize::Size(wanted.size_bytes)),
            Kind::Null { .. } | Kind::Malloc { .. } if wanted.size_bytes == device.size => None,
            Kind::Null { .. } => Some(Resize::Size(wanted.size_bytes)),
            Kind::Malloc { memory, .. } => {
                let grown = memory.grow(wanted.size_bytes);
                Some(Resize::Memory(Arc::new(grown.map_err(|error| Failure::internal(&error))?)))
            }
        };
        if let Some(resize) = resize {
            if let (Kind::Malloc { memory, .. }, Resize::Memory(grown)) =
                (&mut device.kind, &resize)
            {
                *memory = grown.clone();
            }
            let key = device.key;
            let answer = serve.ask(|done| Command::Resize { device: key, resize, done }).await;
            let size = answer.map_err(stopped)?.map_err(|error| failure(&error))?;
            if size != device.size {
                info!(bdev = name, size, "device has grown");
            }
            device.size = size;
        }
        device.wanted = wanted;
        Ok(())
    }

    async fn remove(&mut self, name: &str) -> Result<(), Failure> {
        if let Some(device) = self.devices.remove(name) {
            let key = device.key;
            let removed = self.serve.ask(|done| Command::RemoveDevice { device: key, done }).await;
            removed.map_err(stopped)?;
            info!(bdev = name, "device closed");
        }
        Ok(())
    }
}

/// Memory that was kept under this name, grown if need be, or new memory; and whether it was kept.
fn memory_of(
    name: &str,
    size: u64,
    kept: Option<std::os::fd::OwnedFd>,
) -> Result<(DeviceMemory, bool), Failure> {
    let internal = |error| Failure::internal(&error);
    if let Some(fd) = kept {
        match DeviceMemory::open(fd) {
            Ok(memory) if memory.name() == name && memory.size() < size => {
                let grown = memory.grow(size).map_err(internal)?;
                return Ok((grown, true));
            }
            Ok(memory) if memory.name() == name => {
                info!(bdev = name, size = memory.size(), "memory taken over with its data");
                return Ok((memory, true));
            }
            Ok(memory) => {
                tracing::warn!(bdev = name, found = memory.name(), "kept memory is another's");
            }
            Err(error) => tracing::warn!(bdev = name, %error, "kept memory is not usable"),
        }
    }
    DeviceMemory::create(name, size).map(|memory| (memory, false)).map_err(internal)
}

fn null_device(
    key: DeviceKey,
    wanted: Bdev,
    latency: u64,
) -> Result<(AnyChannel, Device), Failure> {
    check_size(&wanted)?;
    let size = wanted.size_bytes;
    let channel = NullChannel::new(Geometry { size, read_only: false }, latency);
    let kind = Kind::Null { latency };
    let device = Device { key, wanted, size, kind, minimum_block_size: SMALLEST_BLOCK };
    Ok((AnyChannel::Null(channel), device))
}

async fn file_device(
    key: DeviceKey,
    wanted: Bdev,
    file: FileDriver,
) -> Result<(AnyChannel, Device), Failure> {
    let options = FileOptions {
        size: wanted.size_bytes,
        create: file.create,
        direct: file.direct,
        read_only: file.read_only,
        ..FileOptions::new(file.path)
    };
    let opened = blocking(move || FileDevice::open(&options)).await?;
    let device = opened.map_err(|error| failure(&error))?;
    let size = device.geometry().size;
    let unit = u32::try_from(device.alignment().unit).unwrap_or(u32::MAX);
    info!(bdev = wanted.name, direct = device.direct(), unit, "file opened");
    let kind = Kind::File { read_only: file.read_only };
    let minimum_block_size = unit.max(SMALLEST_BLOCK);
    let entry = Device { key, wanted, size, kind, minimum_block_size };
    Ok((AnyChannel::File(Box::new(device)), entry))
}

fn check_size(wanted: &Bdev) -> Result<(), Failure> {
    match wanted.size_bytes {
        0 => Err(Failure::invalid(format!("bdev \"{}\" needs a size", wanted.name))),
        _ => Ok(()),
    }
}

/// Runs what may block on a thread of its own.
async fn blocking<T: Send + 'static>(
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
pub fn stopped(_: crate::serve::Stopped) -> Failure {
    Failure::unavailable("the serve loop has ended")
}
