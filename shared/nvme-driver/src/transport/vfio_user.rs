//! A controller behind a vfio-user server's socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ipc::event::EventFd;
use ipc::guest_memory::{Access, Region, RegionPolicy};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nvme_spec::register::offset::DOORBELLS;
use vfio_user::client::{Client, ClientError, DEFAULT_TIMEOUT, VersionStyle};
use vfio_user::dma::{DmaAccess, DmaUnmap, Iova};
use vfio_user::irq::{IrqIndex, IrqSetFlags};
use vfio_user::message::IrqSet;
use vfio_user::region::RegionIndex;
use vfio_user::version::{Capabilities, MAJOR, Proposal};

use super::{DoorbellCost, Transport, TransportError};
use crate::doorbell::{Doorbell, DoorbellArea, DoorbellMemory};

/// Class code of an NVMe I/O controller.
const CLASS_NVME: u32 = 0x01_08_02;
/// Shortest bound of a wait for a register: no target works for one, but a machine may be busy.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(2);
/// Command register: memory space and bus master enable.
const COMMAND: u64 = 0x04;
const COMMAND_BITS: u16 = 0x0006;
/// Head of the capability list, and MSI-X in it.
const CAPABILITIES: u64 = 0x34;
const CAPABILITY_MSIX: u8 = 0x11;
/// MSI-X Message Control: enable, function mask.
const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_MASK: u16 = 1 << 14;
/// Capabilities of 4 bytes or more that fit the first 256 bytes: bounds the walk over the list.
const CAPABILITIES_MAX: usize = 48;

/// The connection to a server.
pub struct VfioUser {
    client: Mutex<Client>,
    /// Of the same connection, to look whether it is still there, and to end it.
    stream: UnixStream,
    doorbells: Option<Mapping>,
    vectors: u16,
    /// Whether MSI-X was enabled: a reset disables it.
    msix: AtomicBool,
    severed: AtomicBool,
    path: PathBuf,
    /// Longest wait for a register. What a device may have to be drained for waits no shorter than [`DEFAULT_TIMEOUT`].
    answer: Duration,
}

/// The doorbells' area, mapped.
struct Mapping {
    region: Arc<Region>,
    /// Offset within BAR0, offset within the descriptor, bytes.
    first: u64,
    at: u64,
    len: u64,
}

impl VfioUser {
    /// Connects to the server at `path` and prepares its device for use. All of it within `timeout`; later answers within
    /// `answer` each.
    ///
    /// # Errors
    /// [`TransportError`].
    pub fn connect(
        path: &Path,
        timeout: Duration,
        answer: Duration,
    ) -> Result<Self, TransportError> {
        let deadline = Instant::now() + timeout;
        let refused = |source| ClientError::Connect { path: path.to_path_buf(), source };
        let stream = connect_until(path, deadline).map_err(refused)?;
        let second = stream.try_clone().map_err(refused)?;
        let mut client = Client::new(stream);
        let left = || deadline.saturating_duration_since(Instant::now());
        let capabilities = Capabilities {
            max_msg_fds: Some(::vfio_user::framing::MAX_MSG_FDS as u64),
            max_data_xfer_size: Some(::vfio_user::framing::MAX_DATA_XFER_SIZE.into()),
            ..Capabilities::default()
        };
        client.set_timeout(left());
        client.version(&VersionStyle::Json(Proposal { major: MAJOR, minor: 0, capabilities }))?;
        client.set_timeout(left());
        let info = client.device_info()?;
        if !info.flags.pci() || (info.num_regions as usize) <= RegionIndex::CONFIG.position() {
            let found = format!("{} regions, pci: {}", info.num_regions, info.flags.pci());
            return Err(TransportError::Unfit { found, needed: "a pci function of 8 regions" });
        }
        client.set_timeout(left());
        let class = config_u32(&mut client, 0x08)? >> 8;
        if class != CLASS_NVME {
            let found = format!("class code {class:#08x}");
            return Err(TransportError::Unfit { found, needed: "class code 0x010802" });
        }
        client.set_timeout(left());
        let doorbells = map_doorbells(&mut client)?;
        client.set_timeout(left());
        // A server without interrupts is polled.
        let vectors = match client.irq_info(IrqIndex::MSIX) {
            Ok(info) => u16::try_from(info.count).unwrap_or(u16::MAX),
            Err(ClientError::Refused { .. }) => 0,
            Err(error) => return Err(error.into()),
        };
        client.set_timeout(left());
        enable_function(&mut client)?;
        client.set_timeout(answer.max(DEFAULT_TIMEOUT));
        Ok(Self {
            client: Mutex::new(client),
            stream: second,
            doorbells,
            vectors,
            msix: AtomicBool::new(false),
            severed: AtomicBool::new(false),
            path: path.to_path_buf(),
            answer: answer.max(REGISTER_TIMEOUT),
        })
    }

    fn client(&self) -> Result<MutexGuard<'_, Client>, TransportError> {
        if self.severed.load(Ordering::Acquire) {
            return Err(TransportError::Gone);
        }
        Ok(self.client.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Passes a result on; after a failed exchange the stream is of no use, and nobody is to wait on it again.
    fn check<T>(&self, result: Result<T, ClientError>) -> Result<T, TransportError> {
        if let Err(ClientError::Exchange { .. } | ClientError::BadReply { .. }) = &result {
            self.sever();
        }
        Ok(result?)
    }

    fn read<const N: usize>(&self, offset: u64) -> Result<[u8; N], TransportError> {
        let mut bytes = [0; N];
        let mut client = self.client()?;
        client.set_timeout(self.answer);
        let result = client.region_read(RegionIndex::BAR0, offset, &mut bytes);
        client.set_timeout(self.answer.max(DEFAULT_TIMEOUT));
        drop(client);
        self.check(result)?;
        Ok(bytes)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), TransportError> {
        let mut client = self.client()?;
        client.set_timeout(self.answer);
        let result = client.region_write(RegionIndex::BAR0, offset, bytes);
        client.set_timeout(self.answer.max(DEFAULT_TIMEOUT));
        drop(client);
        self.check(result)
    }
}

/// Connects. A server that takes nobody in, and whose backlog is full, is waited for until the deadline only.
fn connect_until(path: &Path, deadline: Instant) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    let address = UnixAddr::new(path)?;
    loop {
        match connect(fd.as_raw_fd(), &address) {
            Ok(()) => break,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(Errno::EAGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            Err(error) => return Err(error.into()),
        }
    }
    let stream = UnixStream::from(fd);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn config_u32(client: &mut Client, offset: u64) -> Result<u32, ClientError> {
    let mut bytes = [0; 4];
    client.region_read(RegionIndex::CONFIG, offset, &mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

/// Lets the function answer to its BARs and do DMA.
fn enable_function(client: &mut Client) -> Result<(), ClientError> {
    let mut command = [0; 2];
    client.region_read(RegionIndex::CONFIG, COMMAND, &mut command)?;
    let command = u16::from_le_bytes(command) | COMMAND_BITS;
    client.region_write(RegionIndex::CONFIG, COMMAND, &command.to_le_bytes())
}

/// Maps the area that holds the doorbells, if the server offers one; else they are written by messages.
fn map_doorbells(client: &mut Client) -> Result<Option<Mapping>, TransportError> {
    let details = client.region_info(RegionIndex::BAR0)?;
    if details.info.size <= DOORBELLS {
        let found = format!("a BAR0 of {:#x} bytes", details.info.size);
        return Err(TransportError::Unfit { found, needed: "more than 0x1000" });
    }
    let (Some(fd), true) = (details.fd, details.info.flags.mmap()) else { return Ok(None) };
    let inside = |first: u64, size: u64| {
        first <= DOORBELLS && first.checked_add(size).is_some_and(|end| end > DOORBELLS)
    };
    let area = match details.areas.as_slice() {
        [] if !details.info.flags.caps() => Some((0, details.info.size)),
        areas => {
            areas.iter().map(|area| (area.offset, area.size)).find(|&(at, size)| inside(at, size))
        }
    };
    let Some((first, size)) = area else { return Ok(None) };
    Ok(map(fd, details.info.offset, first, size))
}

fn map(fd: OwnedFd, region_offset: u64, first: u64, size: u64) -> Option<Mapping> {
    let at = region_offset.checked_add(first)?;
    let needed = at.checked_add(size)?;
    let policy = RegionPolicy { any_file_system: true, ..RegionPolicy::default() };
    match Region::map(fd, needed, &policy) {
        Ok(region) if region.access().contains(Access::READ_WRITE) => {
            Some(Mapping { region, first, at, len: size })
        }
        Ok(_) => None,
        Err(error) => {
            tracing::debug!(%error, "doorbells cannot be mapped, messages take their place");
            None
        }
    }
}

/// Enables MSI-X in configuration space, for servers that look there.
fn enable_msix(client: &mut Client) -> Result<(), ClientError> {
    let mut at = [0];
    client.region_read(RegionIndex::CONFIG, CAPABILITIES, &mut at)?;
    for _ in 0..CAPABILITIES_MAX {
        let offset = u64::from(at[0] & !3);
        if offset == 0 {
            break;
        }
        let mut head = [0; 4];
        client.region_read(RegionIndex::CONFIG, offset, &mut head)?;
        if head[0] == CAPABILITY_MSIX {
            let control = u16::from_le_bytes([head[2], head[3]]) & !MSIX_MASK | MSIX_ENABLE;
            return client.region_write(RegionIndex::CONFIG, offset + 2, &control.to_le_bytes());
        }
        at = [head[1]];
    }
    Ok(())
}

impl Transport for VfioUser {
    fn read_u32(&self, offset: u64) -> Result<u32, TransportError> {
        self.read(offset).map(u32::from_le_bytes)
    }

    fn read_u64(&self, offset: u64) -> Result<u64, TransportError> {
        self.read(offset).map(u64::from_le_bytes)
    }

    fn write_u32(&self, offset: u64, value: u32) -> Result<(), TransportError> {
        self.write(offset, &value.to_le_bytes())
    }

    fn write_u64(&self, offset: u64, value: u64) -> Result<(), TransportError> {
        self.write(offset, &value.to_le_bytes())
    }

    fn post_u32(&self, offset: u64, value: u32) -> Result<(), TransportError> {
        let bytes = value.to_le_bytes();
        let result = self.client()?.post_region_write(RegionIndex::BAR0, offset, &bytes);
        self.check(result)
    }

    fn doorbell(&self, offset: u64) -> Option<Doorbell> {
        let mapping = self.doorbells.as_ref()?;
        let within = offset.checked_sub(mapping.first).filter(|&at| at + 4 <= mapping.len)?;
        Doorbell::in_region(&mapping.region, mapping.at + within)
    }

    fn doorbell_memory(&self) -> Option<DoorbellMemory> {
        let Mapping { region, first, at, len } = self.doorbells.as_ref()?;
        let fd = region.fd().try_clone_to_owned().ok()?;
        let area = DoorbellArea { first: *first, at: *at, len: *len, device: false };
        Some(DoorbellMemory { fd, area })
    }

    fn doorbell_cost(&self) -> DoorbellCost {
        if self.doorbells.is_some() { DoorbellCost::Memory } else { DoorbellCost::Message }
    }

    fn dma_map(&self, iova: u64, memory: &Arc<Region>) -> Result<(), TransportError> {
        let access = memory.access();
        let access = DmaAccess::new()
            .with_read(access.contains(Access::READ))
            .with_write(access.contains(Access::WRITE));
        let result =
            self.client()?.dma_map(Iova(iova), memory.len(), access, Some((memory.fd(), 0)));
        self.check(result)
    }

    fn dma_unmap(&self, iova: u64, len: u64) -> Result<(), TransportError> {
        let result = self.client()?.dma_unmap(DmaUnmap::Exact { iova: Iova(iova), size: len });
        self.check(result)
    }

    fn vectors(&self) -> u16 {
        self.vectors
    }

    fn set_vectors(&self, events: &[EventFd]) -> Result<(), TransportError> {
        let mut client = self.client()?;
        let mut result = client.set_eventfds(IrqIndex::MSIX, 0, events);
        if result.is_ok() {
            result = enable_msix(&mut client);
            self.msix.store(result.is_ok(), Ordering::Release);
        }
        drop(client);
        self.check(result)
    }

    fn set_vector(&self, vector: u16, event: Option<&EventFd>) -> Result<(), TransportError> {
        let flags = IrqSetFlags::new().with_data_eventfd(true).with_trigger(true);
        // Without a descriptor the vector has none from then on.
        let fds: Vec<_> = event.iter().map(|event| event.as_fd()).collect();
        let start = vector.into();
        let set = IrqSet { argsz: 0, flags, index: IrqIndex::MSIX, start, count: 1 };
        let result = self.client()?.set_irqs(set, &[], &fds);
        self.check(result)
    }

    fn reset(&self) -> Result<(), TransportError> {
        let mut client = self.client()?;
        let mut result = client.reset();
        if result.is_ok() {
            // The reset cleared both.
            result = enable_function(&mut client);
        }
        if result.is_ok() && self.msix.load(Ordering::Acquire) {
            result = enable_msix(&mut client);
        }
        drop(client);
        self.check(result)
    }

    fn alive(&self) -> bool {
        if self.severed.load(Ordering::Acquire) {
            return false;
        }
        if self.doorbells.as_ref().is_some_and(|mapping| mapping.region.failed()) {
            return false;
        }
        let mut fds = [PollFd::new(self.stream.as_fd(), PollFlags::empty())];
        let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
        match poll(&mut fds, PollTimeout::ZERO) {
            Ok(_) => !fds[0].revents().is_some_and(|events| events.intersects(gone)),
            Err(_) => true,
        }
    }

    fn sever(&self) {
        if !self.severed.swap(true, Ordering::AcqRel) {
            // A server takes the end of the connection as the end of the device's memory.
            if let Err(error) = self.stream.shutdown(std::net::Shutdown::Both)
                && error.kind() != io::ErrorKind::NotConnected
            {
                tracing::debug!(%error, "shut the connection down");
            }
        }
    }
}

impl std::fmt::Debug for VfioUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VfioUser({})", self.path.display())
    }
}
