//! The transport over a socket: a client that attaches in the order real ones do.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use ipc::doorbell::{DOORBELL_PAGE_OFFSET, DOORBELL_PAGE_SIZE, DoorbellPage};
use ipc::event::EventFd;
use vfio_user::client::{Client, ClientError, VersionStyle};
use vfio_user::dma::{DmaUnmap, Iova};
use vfio_user::irq::IrqIndex;
use vfio_user::message::DmaAccess;
use vfio_user::pci::config::{COMMAND, COMMAND_BUS_MASTER, COMMAND_MEMORY};
use vfio_user::region::RegionIndex;

use super::memory::{Buffer, HostMemory};
use super::transport::Transport;
use crate::wait::PATIENCE;

/// How to attach.
#[derive(Clone, Debug)]
pub struct Attach {
    /// Proposal of the VERSION message.
    pub version: VersionStyle,
    /// MSI-X vectors to give eventfds to.
    pub vectors: u32,
    /// Whether to map the doorbell page where it is offered; if not, doorbells are messages.
    pub map_doorbells: bool,
    /// Bytes of host memory.
    pub memory: u64,
}

impl Default for Attach {
    /// As SPDK says hello, 4 vectors, doorbells mapped, 64 MiB.
    fn default() -> Self {
        let version = VersionStyle::Bare { minor: 0 };
        Self { version, vectors: 4, map_doorbells: true, memory: 64 << 20 }
    }
}

/// A client that is attached.
pub struct VfioUser {
    /// The connection, for messages of a test's own.
    pub client: Client,
    doorbells: Option<DoorbellPage>,
    vectors: Vec<EventFd>,
}

/// Read and write.
pub fn read_write() -> DmaAccess {
    DmaAccess::new().with_read(true).with_write(true)
}

impl VfioUser {
    /// Connects, says hello, maps `memory`, looks at device and regions, sets up interrupts, lets the function answer to
    /// its BARs and do DMA.
    ///
    /// # Errors
    /// What the server refuses, or that it is not there.
    pub fn attach(socket: &Path, how: &Attach, memory: &HostMemory) -> Result<Self, ClientError> {
        let mut client = Client::connect(socket)?;
        // A target that stalls with its machine is none that hangs.
        client.set_timeout(PATIENCE);
        client.version(&how.version)?;
        map(&mut client, memory, memory.whole())?;
        let info = client.device_info()?;
        assert!(info.flags.pci() && info.num_regions >= 8 && info.num_irqs >= 3, "{info:?}");
        let bar0 = client.region_info(RegionIndex::BAR0)?;
        let mut doorbells = None;
        if let (true, Some(fd)) = (how.map_doorbells, bar0.fd) {
            let area = bar0.areas.first().expect("a region that can be mapped has an area");
            assert_eq!(
                (bar0.info.offset + area.offset, area.size),
                (DOORBELL_PAGE_OFFSET as u64, DOORBELL_PAGE_SIZE as u64)
            );
            doorbells = Some(DoorbellPage::open(fd).expect("map the doorbell page"));
        }
        let vectors: Vec<_> =
            (0..how.vectors).map(|_| EventFd::create().expect("eventfd")).collect();
        client.set_eventfds(IrqIndex::MSIX, 0, &vectors)?;
        let command = (COMMAND_MEMORY | COMMAND_BUS_MASTER).to_le_bytes();
        client.region_write(RegionIndex::CONFIG, COMMAND as u64, &command)?;
        Ok(Self { client, doorbells, vectors })
    }

    /// A client that attached in its own way: with the descriptor of the doorbell page, if that is to be mapped, and the
    /// eventfds that it gave to the vectors.
    pub fn of(client: Client, doorbells: Option<OwnedFd>, vectors: Vec<EventFd>) -> Self {
        let doorbells = doorbells.map(|fd| DoorbellPage::open(fd).expect("map the doorbell page"));
        Self { client, doorbells, vectors }
    }

    /// The eventfd of a vector.
    ///
    /// # Panics
    /// If it has none.
    #[track_caller]
    pub fn vector_of(&self, vector: u16) -> &EventFd {
        self.vector(vector).expect("the vector has an eventfd")
    }

    /// Whether the server offered the doorbell page, and it is mapped.
    pub fn maps_doorbells(&self) -> bool {
        self.doorbells.is_some()
    }

    /// Offers part of the memory at its address.
    ///
    /// # Errors
    /// The server's.
    pub fn map(&mut self, memory: &HostMemory, part: Buffer) -> Result<(), ClientError> {
        map(&mut self.client, memory, part)
    }

    /// Takes memory back that was offered exactly so.
    ///
    /// # Errors
    /// The server's.
    pub fn unmap(&mut self, part: Buffer) -> Result<(), ClientError> {
        self.client.dma_unmap(DmaUnmap::Exact { iova: Iova(part.iova.0), size: part.len })
    }
}

fn map(client: &mut Client, memory: &HostMemory, part: Buffer) -> Result<(), ClientError> {
    let offset = part.iova.0 - memory.base().0;
    client.dma_map(Iova(part.iova.0), part.len, read_write(), Some((memory.fd().as_fd(), offset)))
}

impl Transport for VfioUser {
    fn read_register(&mut self, offset: u64, data: &mut [u8]) {
        self.client.region_read(RegionIndex::BAR0, offset, data).expect("read a register");
    }

    fn write_register(&mut self, offset: u64, data: &[u8]) {
        self.client.region_write(RegionIndex::BAR0, offset, data).expect("write a register");
    }

    fn ring(&mut self, index: usize, value: u32) {
        match &self.doorbells {
            Some(page) => page.store(index, value),
            None => {
                let offset = DOORBELL_PAGE_OFFSET as u64 + 4 * index as u64;
                let bytes = value.to_le_bytes();
                self.client.post_region_write(RegionIndex::BAR0, offset, &bytes).expect("ring");
            }
        }
    }

    fn relax(&mut self) {
        std::thread::sleep(std::time::Duration::from_micros(20));
    }

    fn vector(&self, vector: u16) -> Option<&EventFd> {
        self.vectors.get(usize::from(vector))
    }
}
