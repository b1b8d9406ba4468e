//! A client of the simulated target.

use std::cell::{RefCell, RefMut};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use ipc::doorbell::DoorbellPage;
use ipc::event::EventFd;
use nvme_spec::Nsid;
use vfio_user::irq::{IrqIndex, IrqSetFlags};
use vfio_user::message::{DmaMapBody, DmaUnmapBody, DmaUnmapFlags, IrqSet, RegionAccess};
use vfio_user::pci::config::{COMMAND, COMMAND_BUS_MASTER, COMMAND_MEMORY};
use vfio_user::region::RegionIndex;
use vfio_user::{Command, Header};
use zerocopy::IntoBytes;

use super::world::{Fate, World};
use crate::host::driver::MEMORY_BASE;
use crate::host::memory::{Buffer, HostMemory};
use crate::host::vfio_user::read_write;
use crate::host::{Driver, Transport};

/// The target, shared by its clients in one thread.
#[derive(Clone)]
pub struct SharedWorld(Rc<RefCell<World>>);

/// A driver of a simulated controller.
pub type SimulatedHost = Driver<SimulatedClient>;

/// A client's connection to one controller.
pub struct SimulatedClient {
    world: SharedWorld,
    index: usize,
    doorbells: Option<DoorbellPage>,
    vectors: Vec<EventFd>,
}

impl SharedWorld {
    /// Shares a world.
    pub fn new(world: World) -> Self {
        Self(Rc::new(RefCell::new(world)))
    }

    /// The world, for a moment.
    pub fn get(&self) -> RefMut<'_, World> {
        self.0.borrow_mut()
    }

    /// Connects to a controller, with `bytes` of host memory and interrupts, and enables nothing.
    pub fn attach(&self, index: usize, mapped: bool, bytes: u64) -> SimulatedHost {
        let mut client = self.client(index, mapped);
        let memory = HostMemory::new(MEMORY_BASE, bytes);
        client.map(&memory, memory.whole());
        Driver::new(client, memory)
    }

    /// Connects to a controller, with interrupts and without memory.
    pub fn client(&self, index: usize, mapped: bool) -> SimulatedClient {
        self.get().connect(index);
        let doorbells = mapped.then(|| self.get().doorbells(index));
        let vectors = (0..17).map(|_| EventFd::create().expect("eventfd")).collect();
        let mut client = SimulatedClient { world: self.clone(), index, doorbells, vectors };
        client.call(Command::VERSION, &[0; 4], Vec::new());
        client.set_vectors();
        let command = (COMMAND_MEMORY | COMMAND_BUS_MASTER).to_le_bytes();
        client.write_region(RegionIndex::CONFIG, COMMAND as u64, &command);
        client
    }
}

/// A world of one controller and one namespace of 16 MiB with 512-byte blocks, and a driver with one I/O queue.
pub fn boot(seed: u64, fate: Fate) -> (SharedWorld, SimulatedHost) {
    let mut world = World::new(seed, 1, true, fate);
    world.add_namespace(Nsid(1), 16 << 20, 9);
    let world = SharedWorld::new(world);
    let mut host = world.attach(0, true, 16 << 20);
    host.enable();
    host.create_queues(1, 64);
    (world, host)
}

impl SimulatedClient {
    /// Sends a command; the body of its reply.
    ///
    /// # Panics
    /// If there is none, or it is an error.
    #[track_caller]
    pub fn call(&mut self, command: Command, body: &[u8], fds: Vec<OwnedFd>) -> Vec<u8> {
        let bytes = Header::command(1, command, body.len()).with_body(body);
        let reply = self.world.get().message(self.index, &bytes, fds).expect("a reply");
        let header = Header::parse(&reply.bytes).expect("a header");
        assert!(!header.flags.error(), "command {} refused: {}", command.0, header.error);
        reply.bytes[vfio_user::message::HEADER_SIZE..].to_vec()
    }

    /// Offers a part of the memory.
    #[track_caller]
    pub fn map(&mut self, memory: &HostMemory, part: Buffer) {
        let body = DmaMapBody {
            argsz: size_of::<DmaMapBody>() as u32,
            flags: read_write(),
            offset: part.iova.0 - memory.base().0,
            address: part.iova.0,
            size: part.len,
        };
        let fd = memory.fd().try_clone_to_owned().expect("dup");
        self.call(Command::DMA_MAP, body.as_bytes(), vec![fd]);
    }

    /// Takes a part of the memory back.
    #[track_caller]
    pub fn unmap(&mut self, part: Buffer) {
        let argsz = size_of::<DmaUnmapBody>() as u32;
        let (flags, address, size) = (DmaUnmapFlags::new(), part.iova.0, part.len);
        let body = DmaUnmapBody { argsz, flags, address, size };
        self.call(Command::DMA_UNMAP, body.as_bytes(), Vec::new());
    }

    /// DEVICE_RESET.
    #[track_caller]
    pub fn reset(&mut self) {
        self.call(Command::DEVICE_RESET, &[], Vec::new());
    }

    /// Gives every vector its eventfd.
    #[track_caller]
    pub fn set_vectors(&mut self) {
        let events = std::mem::take(&mut self.vectors);
        self.use_vectors(events);
    }

    /// Gives vectors 0 and on these eventfds.
    #[track_caller]
    pub fn use_vectors(&mut self, events: Vec<EventFd>) {
        self.vectors = events;
        let flags = IrqSetFlags::new().with_data_eventfd(true).with_trigger(true);
        for start in (0..self.vectors.len()).step_by(8) {
            let run = &self.vectors[start..self.vectors.len().min(start + 8)];
            let dup = |event: &EventFd| event.as_fd().try_clone_to_owned().expect("dup");
            let fds: Vec<_> = run.iter().map(dup).collect();
            let set = IrqSet {
                argsz: size_of::<IrqSet>() as u32,
                flags,
                index: IrqIndex::MSIX,
                start: start as u32,
                count: fds.len() as u32,
            };
            self.call(Command::DEVICE_SET_IRQS, set.as_bytes(), fds);
        }
    }

    /// The client goes without a word.
    pub fn disconnect(self) {
        self.world.get().disconnect(self.index);
    }

    fn write_region(&mut self, region: RegionIndex, offset: u64, data: &[u8]) {
        let access = RegionAccess { offset, region, count: data.len() as u32 };
        let body = [access.as_bytes(), data].concat();
        self.call(Command::REGION_WRITE, &body, Vec::new());
    }
}

impl Transport for SimulatedClient {
    fn read_register(&mut self, offset: u64, data: &mut [u8]) {
        let access = RegionAccess { offset, region: RegionIndex::BAR0, count: data.len() as u32 };
        let reply = self.call(Command::REGION_READ, access.as_bytes(), Vec::new());
        data.copy_from_slice(&reply[size_of::<RegionAccess>()..]);
    }

    fn write_register(&mut self, offset: u64, data: &[u8]) {
        self.write_region(RegionIndex::BAR0, offset, data);
    }

    fn ring(&mut self, index: usize, value: u32) {
        match &self.doorbells {
            Some(page) => page.store(index, value),
            None => {
                let offset = nvme_spec::register::offset::DOORBELLS + 4 * index as u64;
                self.write_region(RegionIndex::BAR0, offset, &value.to_le_bytes());
            }
        }
    }

    fn relax(&mut self) {
        self.world.get().step();
    }

    fn vector(&self, vector: u16) -> Option<&EventFd> {
        self.vectors.get(usize::from(vector))
    }
}
