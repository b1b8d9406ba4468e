//! Brings about the block devices that the manager wants: made, grown and closed, one document after the other.
//!
//! Opening a file, asking the keeper and waiting for the serve loop all take their time: the lock of what others look at
//! is never held meanwhile.

use crate::backend::{State, lock};
use crate::lease::Leases;
use crate::registry::{Device, Kind, SMALLEST_BLOCK, blocking, failure, stopped, unanswered};
use crate::serve::{Command, DeviceKey, Handle, Resize};
use crate::store::{DriveStore, Store};
use bdev::channel::{AnyChannel, Channel, Geometry};
use bdev::error::ErrorKind;
use bdev::file::{FileDevice, FileOptions};
use bdev::malloc::MallocChannel;
use bdev::null::NullChannel;
use bdev::nvme::{Address, Keeper, NvmeDevice, NvmeOptions, PciAddress, is_held, retire};
use ipc::device_memory::DeviceMemory;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::info;
use vireo_proto::Failure;
use vireo_proto::handoff::bdev::Driver;
use vireo_proto::handoff::{ApplyBdevs, ApplyFailure, ApplyResult, Bdev, FileDriver, NvmeDriver};

/// How long the serve loop may take for one step.
const LOOP_WAIT: Duration = Duration::from_secs(5);
/// How long a document waits for the last requests of the devices that it removes.
const CLOSE_WAIT: Duration = Duration::from_secs(10);

/// Brings documents about.
pub(crate) struct Applier {
    serve: Handle,
    store: Arc<Mutex<Store>>,
    /// The same for drives, if somebody keeps them.
    drives: Option<Arc<dyn Keeper>>,
    /// Devices that are out of the registry and not closed yet.
    closing: Vec<Closing>,
}

struct Closing {
    name: String,
    done: oneshot::Receiver<()>,
}

impl Applier {
    /// With what a predecessor left in the store, which is taken when its device is wanted.
    pub(crate) fn new(serve: Handle, store: Store) -> Self {
        let store = Arc::new(Mutex::new(store));
        let drives = DriveStore::of(&store);
        Self { serve, store, drives, closing: Vec::new() }
    }

    /// Makes the devices what is wanted. What cannot be done is told, the rest is done.
    ///
    /// # Errors
    /// The serve loop has ended.
    pub(crate) async fn apply(
        &mut self,
        state: &Mutex<State>,
        wanted: ApplyBdevs,
    ) -> Result<ApplyResult, Failure> {
        let names: Vec<String> = wanted.bdevs.iter().map(|bdev| bdev.name.clone()).collect();
        let surplus = lock(state).take_all_but(&names);
        for device in surplus {
            self.close(device).await?;
        }
        let mut failures = self.closed().await;
        // What is not wanted any more; what is wanted and not there yet may be kept for it.
        let (store, keeper, drives) =
            (Arc::clone(&self.store), self.drives.clone(), drives_of(&wanted));
        blocking(move || {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            lock(&store).keep_only(&names);
            let left = lock(&store).drives();
            if let Some(keeper) = keeper {
                for drive in left.into_iter().filter(|drive| !drives.contains(drive)) {
                    retire(drive, &keeper);
                }
            }
        })
        .await?;
        for bdev in wanted.bdevs {
            let object = format!("bdev {}", bdev.name);
            let there = lock(state).registry.device_mut(&bdev.name).is_ok();
            let done = match there {
                true => self.change(state, bdev).await,
                false => self.add(state, bdev).await,
            };
            if let Err(failure) = done {
                tracing::warn!(object, error = failure.message(), "not as wanted");
                failures.push(ApplyFailure { object, message: failure.message().to_owned() });
            }
        }
        Ok(ApplyResult { failures })
    }

    /// Has the serve loop let go of a device.
    async fn close(&mut self, device: Device) -> Result<(), Failure> {
        let (done, closed) = oneshot::channel();
        self.serve
            .send(Command::RemoveDevice { device: device.key, done })
            .await
            .map_err(stopped)?;
        self.closing.push(Closing { name: device.wanted.name, done: closed });
        Ok(())
    }

    /// Waits for what is closing; what is not closed in time is told, now and with every further document.
    async fn closed(&mut self) -> Vec<ApplyFailure> {
        let deadline = Instant::now() + CLOSE_WAIT;
        let mut left = Vec::new();
        let mut failures = Vec::new();
        for mut closing in std::mem::take(&mut self.closing) {
            match tokio::time::timeout_at(deadline, &mut closing.done).await {
                Ok(_) => info!(bdev = closing.name, "device closed"),
                Err(_) => {
                    failures.push(ApplyFailure {
                        object: format!("bdev {}", closing.name),
                        message: "removed, but some of its requests have not ended".to_owned(),
                    });
                    left.push(closing);
                }
            }
        }
        self.closing = left;
        failures
    }

    async fn add(&mut self, state: &Mutex<State>, wanted: Bdev) -> Result<(), Failure> {
        let key = lock(state).registry.new_key();
        let missing = || Failure::invalid(format!("bdev \"{}\" has no driver", wanted.name));
        let (channel, device) = match wanted.driver.clone().ok_or_else(missing)? {
            Driver::Null(null) => null_device(key, wanted, null.latency_ns)?,
            Driver::Malloc(_) => self.malloc_device(key, wanted).await?,
            Driver::File(file) => file_device(state, key, wanted, file).await?,
            Driver::Nvme(nvme) => {
                nvme_device(state, key, wanted, nvme, self.drives.clone()).await?
            }
        };
        let command = Command::AddDevice { device: key, channel: Box::new(channel) };
        self.serve.send(command).await.map_err(stopped)?;
        let name = &device.wanted.name;
        info!(bdev = name, driver = device.driver(), size = device.size, "device opened");
        lock(state).registry.insert(device);
        Ok(())
    }

    async fn malloc_device(
        &mut self,
        key: DeviceKey,
        wanted: Bdev,
    ) -> Result<(AnyChannel, Device), Failure> {
        check_size(&wanted)?;
        let (store, name, size) = (Arc::clone(&self.store), wanted.name.clone(), wanted.size_bytes);
        let memory = blocking(move || {
            let mut store = lock(&store);
            let kept = store.take(&name);
            let (memory, adopted) = memory_of(&name, size, kept)?;
            if !adopted {
                store.keep(&name, memory.fd());
            }
            Ok::<_, Failure>(Arc::new(memory))
        })
        .await??;
        let mut leases = Leases::adopt(&memory);
        leases.reap(&memory);
        let channel = MallocChannel::owner(memory.clone(), false, leases.bound());
        let size = memory.size();
        let kind = Kind::Malloc { memory, leases };
        let device = Device { key, wanted, size, kind, minimum_block_size: SMALLEST_BLOCK };
        Ok((AnyChannel::Malloc(channel), device))
    }

    async fn change(&mut self, state: &Mutex<State>, wanted: Bdev) -> Result<(), Failure> {
        let name = wanted.name.clone();
        let (key, resize) = {
            let mut state = lock(state);
            let device = state.registry.device_mut(&name)?;
            (device.key, device.resize_to(&wanted)?)
        };
        if let Some(resize) = resize {
            let command = |done| Command::Resize { device: key, resize, done };
            let answer = self.serve.ask_within(LOOP_WAIT, command).await;
            let size = answer
                .map_err(|why| unanswered(why, "the serve loop has not changed its size in time"))?
                .map_err(|error| failure(&error))?;
            let mut state = lock(state);
            let device = state.registry.device_mut(&name)?;
            if size != device.size {
                info!(bdev = name, size, "device has grown");
            }
            device.size = size;
        }
        lock(state).registry.device_mut(&name)?.wanted = wanted;
        Ok(())
    }
}

impl Device {
    /// Checks what the device is wanted to be now, and gives what its channel in the serve loop is to be told. Memory
    /// has grown when this returns.
    fn resize_to(&mut self, wanted: &Bdev) -> Result<Option<Resize>, Failure> {
        let name = &wanted.name;
        if self.wanted.driver != wanted.driver {
            let text =
                format!("bdev \"{name}\" is there with another driver or path; remove it first");
            return Err(Failure::exists(text));
        }
        if wanted.size_bytes != 0 && wanted.size_bytes < self.size {
            let text = format!(
                "bdev \"{name}\" has {} bytes and does not shrink to {}",
                self.size, wanted.size_bytes
            );
            return Err(Failure::precondition(text));
        }
        let same = wanted.size_bytes == self.size;
        Ok(match &mut self.kind {
            // The file or drive itself may have grown.
            Kind::File { .. } | Kind::Nvme { .. } => Some(Resize::Size(wanted.size_bytes)),
            Kind::Null { .. } | Kind::Malloc { .. } if same => None,
            Kind::Null { .. } => Some(Resize::Size(wanted.size_bytes)),
            Kind::Malloc { memory, .. } => {
                let grown = memory.grow(wanted.size_bytes);
                let grown = Arc::new(grown.map_err(|error| Failure::internal(&error))?);
                *memory = grown.clone();
                Some(Resize::Memory(grown))
            }
        })
    }
}

/// Memory that was kept under this name, grown if need be, or new memory; and whether it was kept.
fn memory_of(
    name: &str,
    size: u64,
    kept: Option<OwnedFd>,
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
    state: &Mutex<State>,
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
    // Of a file, nothing else is of these kinds.
    let away = |error: &bdev::error::Error| matches!(error.kind, ErrorKind::Busy | ErrorKind::Gone);
    let locked = opened.as_ref().is_err_and(away);
    lock(state).tried_to_lock(wanted.name.clone(), !locked);
    let device = opened.map_err(|error| failure(&error))?;
    let size = device.geometry().size;
    let unit = u32::try_from(device.alignment().unit).unwrap_or(u32::MAX);
    info!(bdev = wanted.name, direct = device.direct(), unit, "file opened");
    if let Some(reason) = device.refusal() {
        // The same for all files: said once.
        static SAID: Once = Once::new();
        SAID.call_once(|| {
            tracing::warn!(
                %reason,
                "io_uring is refused here (seccomp, kernel.io_uring_disabled): threads serve files, at more cost"
            );
        });
    }
    let kind = Kind::File { read_only: file.read_only };
    let minimum_block_size = unit.max(SMALLEST_BLOCK);
    let entry = Device { key, wanted, size, kind, minimum_block_size };
    Ok((AnyChannel::File(Box::new(device)), entry))
}

async fn nvme_device(
    state: &Mutex<State>,
    key: DeviceKey,
    wanted: Bdev,
    nvme: NvmeDriver,
    keeper: Option<Arc<dyn Keeper>>,
) -> Result<(AnyChannel, Device), Failure> {
    let NvmeDriver { target, nsid, read_only, polled } = nvme;
    let options = NvmeOptions { target, nsid, read_only, polled };
    let opened = blocking(move || NvmeDevice::open_kept(&options, keeper.as_ref())).await?;
    let held = opened.as_ref().is_err_and(is_held);
    lock(state).tried_to_lock(wanted.name.clone(), !held);
    let device = opened.map_err(|error| failure(&error))?;
    let (features, geometry) = (device.features(), device.geometry());
    let block = features.block_size;
    if wanted.block_size != 0 && wanted.block_size < block {
        // Shutting the drive down takes its time.
        blocking(move || drop(device)).await?;
        let text = format!(
            "bdev \"{}\": the drive has blocks of {block} bytes; leave block_size out, or say {block}",
            wanted.name
        );
        return Err(Failure::invalid(text));
    }
    let kind = Kind::Nvme { read_only: geometry.read_only, features };
    let entry = Device { key, wanted, size: geometry.size, kind, minimum_block_size: block };
    Ok((AnyChannel::Nvme(Box::new(device)), entry))
}

/// The physical drives that are wanted.
fn drives_of(wanted: &ApplyBdevs) -> Vec<PciAddress> {
    let drive = |bdev: &Bdev| match &bdev.driver {
        Some(Driver::Nvme(nvme)) => match nvme.target.parse() {
            Ok(Address::Pcie(drive)) => Some(drive),
            Ok(Address::VfioUser(_)) | Err(_) => None,
        },
        Some(Driver::Null(_) | Driver::Malloc(_) | Driver::File(_)) | None => None,
    };
    wanted.bdevs.iter().filter_map(drive).collect()
}

fn check_size(wanted: &Bdev) -> Result<(), Failure> {
    match wanted.size_bytes {
        0 => Err(Failure::invalid(format!("bdev \"{}\" needs a size", wanted.name))),
        _ => Ok(()),
    }
}
