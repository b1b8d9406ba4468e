//! A client and two workers.

use ipc::Iova;
use ipc::dma_table::{DmaRow, DmaWriter};
use ipc::doorbell::DoorbellPage;
use ipc::guest_memory::{Access, GuestMemory, Region, RegionId, RegionPolicy};
use ipc::layout::controller::ControllerLayout;
use ipc::layout::queues::QueuesLayout;
use ipc::segment::Segment;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use nvme::{
    Context, Controller, ControllerConfig, Effect, NamespaceConfig, Protection, Request, ResetKind,
    Subsystem, SubsystemConfig, Ticket, WorkerSeat,
};
use nvme_spec::command::{AdminOpcode, Command};
use nvme_spec::register::{Cc, CommandSetSelected, Csts, offset};
use nvme_spec::{CommandId, Completion, Nsid, Status};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use zerocopy::{FromBytes, IntoBytes};

/// Bytes of guest memory, mapped at 0.
pub const MEMORY: u64 = 8 << 20;
/// Where the admin queues and the data of commands lie: at multiples of 64 KiB.
pub const ASQ: u64 = 0x1_0000;
pub const ACQ: u64 = 0x2_0000;
pub const DATA: u64 = 0x10_0000;
/// Entries of both admin queues.
pub const ENTRIES: u32 = 32;

pub struct Host {
    pub controller: Controller,
    pub memory: GuestMemory,
    pub doorbells: DoorbellPage,
    pub workers: Vec<WorkerSeat>,
    pub subsystem: Subsystem,
    pub effects: Vec<Effect>,
    pub now: Duration,
    pub dma: DmaWriter,
    pub tail: u32,
    pub head: u32,
    phase: bool,
    next_cid: u16,
}

pub fn subsystem() -> Subsystem {
    let config = SubsystemConfig {
        nqn: "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-0000-0000-000000000001".into(),
        serial: "SERIAL1".into(),
        model: "A model".into(),
        firmware: "1.0".into(),
        shared: false,
    };
    let mut subsystem = Subsystem::new(config).unwrap();
    subsystem.add_namespace(namespace(1, 64 << 20)).unwrap();
    subsystem
}

pub fn namespace(nsid: u32, size: u64) -> NamespaceConfig {
    NamespaceConfig {
        nsid: Nsid(nsid),
        backend: "b0".into(),
        bdev: format!("bdev{nsid}"),
        size,
        block_shift: 9,
        read_only: false,
        force_ring: false,
        deallocated_zeroes: true,
        protection: Protection::None,
    }
}

impl Host {
    /// A client of a controller with 8 I/O queues and 4 vectors, not yet enabled.
    pub fn new() -> Self {
        Self::with(subsystem(), |_| {})
    }

    pub fn with(mut subsystem: Subsystem, change: impl FnOnce(&mut ControllerConfig)) -> Self {
        let mut config = ControllerConfig {
            id: subsystem.add_controller().unwrap(),
            max_transfer: 128 << 10,
            io_queues: 8,
            vectors: 4,
            doorbells_mapped: false,
            vendor: 0x1234,
            subsystem_vendor: 0x5678,
        };
        change(&mut config);
        let segment = Arc::new(Segment::<ControllerLayout>::create("controller", 1).unwrap());
        let mut dma = DmaWriter::attach(Arc::clone(&segment)).unwrap();
        let mut memory = GuestMemory::new(Arc::clone(&segment));
        let fd = memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).unwrap();
        ftruncate(&fd, MEMORY as i64).unwrap();
        let region = Region::map(fd, MEMORY, &RegionPolicy::default()).unwrap();
        assert!(memory.regions_mut().insert(RegionId(0), region).is_ok());
        let access = Access::READ_WRITE;
        let region = Some(RegionId(0));
        dma.map(DmaRow { iova: Iova(0), size: MEMORY, region, offset: 0, access }).unwrap();
        let worker = |id| WorkerSeat {
            queues: Arc::new(Segment::<QueuesLayout>::create("queues", id).unwrap()),
            attached: true,
            draining: false,
        };
        let mut host = Self {
            controller: Controller::new(config, segment).unwrap(),
            memory,
            doorbells: DoorbellPage::create().unwrap(),
            workers: vec![worker(2), worker(3)],
            subsystem,
            effects: Vec::new(),
            now: Duration::from_secs(1),
            dma,
            tail: 0,
            head: 0,
            phase: true,
            next_cid: 0,
        };
        host.call(|controller, cx| controller.power_on(cx));
        host
    }

    /// A client that enabled its controller.
    pub fn enabled() -> Self {
        let mut host = Self::new();
        host.enable();
        host
    }

    pub fn call<T>(&mut self, act: impl FnOnce(&mut Controller, &mut Context<'_>) -> T) -> T {
        self.memory.refresh();
        let mut cx = Context {
            now: self.now,
            memory: &mut self.memory,
            doorbells: &self.doorbells,
            workers: &self.workers,
            subsystem: &mut self.subsystem,
            effects: &mut self.effects,
        };
        act(&mut self.controller, &mut cx)
    }

    pub fn read32(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.controller.read_register(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    pub fn read64(&self, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        self.controller.read_register(offset, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    pub fn write32(&mut self, offset: u64, value: u32) {
        self.call(|controller, cx| controller.write_register(offset, &value.to_le_bytes(), cx));
    }

    pub fn write64(&mut self, offset: u64, value: u64) {
        self.call(|controller, cx| controller.write_register(offset, &value.to_le_bytes(), cx));
    }

    pub fn csts(&self) -> Csts {
        Csts::from_bits(self.read32(offset::CSTS))
    }

    pub fn cc() -> Cc {
        Cc::new().with_en(true).with_css(CommandSetSelected::ALL).with_iosqes(6).with_iocqes(4)
    }

    /// Sets the admin queues up and enables.
    pub fn enable(&mut self) {
        self.enable_with(Self::cc());
        assert!(self.csts().rdy() && !self.csts().cfs());
    }

    pub fn enable_with(&mut self, cc: Cc) {
        self.write32(offset::AQA, (ENTRIES - 1) << 16 | (ENTRIES - 1));
        self.write64(offset::ASQ, ASQ);
        self.write64(offset::ACQ, ACQ);
        self.memory.write(Iova(ACQ), &[0; ENTRIES as usize * 16]).unwrap();
        (self.tail, self.head, self.phase) = (0, 0, true);
        self.write32(offset::CC, cc.into_bits());
    }

    /// Both workers take over everything.
    pub fn acknowledge(&mut self) {
        for worker in 0..self.workers.len() {
            self.acknowledge_one(worker);
        }
    }

    pub fn acknowledge_one(&mut self, worker: usize) {
        let signals = &self.controller.segment().signals;
        let acknowledged = &self.workers[worker].queues.acknowledged;
        for (to, from) in [
            (&acknowledged.version, &signals.version),
            (&acknowledged.reset_generation, &signals.reset_generation),
        ] {
            to.store(from.load(Ordering::Relaxed), Ordering::Release);
        }
        self.call(|controller, cx| controller.poll(cx));
    }

    /// Puts a command into the admin queue and rings; nobody looks yet.
    pub fn submit(&mut self, mut command: Command) -> CommandId {
        self.next_cid = self.next_cid.wrapping_add(1);
        let cid = CommandId(self.next_cid);
        command.cdw0.set_cid(cid);
        let at = ASQ + u64::from(self.tail) * 64;
        self.memory.write(Iova(at), command.as_bytes()).unwrap();
        self.tail = (self.tail + 1) % ENTRIES;
        self.doorbells.store(0, self.tail);
        cid
    }

    pub fn process(&mut self) -> bool {
        self.call(|controller, cx| controller.process_admin(cx))
    }

    /// Takes the next completion, if there is one.
    pub fn completion(&mut self) -> Option<Completion> {
        let mut bytes = [0; 16];
        self.memory.read(Iova(ACQ + u64::from(self.head) * 16), &mut bytes).unwrap();
        let entry = Completion::read_from_bytes(&bytes).unwrap();
        if entry.phase() != self.phase {
            return None;
        }
        self.head = (self.head + 1) % ENTRIES;
        self.phase ^= self.head == 0;
        self.doorbells.store(1, self.head);
        Some(entry)
    }

    /// Runs a command to its completion; workers take over what it changes.
    pub fn run(&mut self, command: Command) -> Completion {
        let cid = self.submit(command);
        self.process();
        self.acknowledge();
        let entry = self.completion().expect("a completion");
        assert_eq!(entry.cid, cid);
        entry
    }

    /// The status that a command ends with, without flags.
    pub fn status(&mut self, command: Command) -> Status {
        self.run(command).status().code()
    }

    /// Runs a command whose data comes to [`DATA`], and returns as much of it.
    pub fn fetch(&mut self, command: Command, bytes: usize) -> Result<Vec<u8>, Status> {
        let entry =
            self.run(command.with_prps(nvme_spec::Iova(DATA), nvme_spec::Iova(DATA + 4096)));
        match entry.status().is_success() {
            true => Ok(self.data(bytes)),
            false => Err(entry.status().code()),
        }
    }

    pub fn data(&self, bytes: usize) -> Vec<u8> {
        let mut data = vec![0; bytes];
        self.memory.read(Iova(DATA), &mut data).unwrap();
        data
    }

    pub fn fill(&mut self, at: u64, bytes: &[u8]) {
        self.memory.write(Iova(at), bytes).unwrap();
    }

    /// Takes the effects so far.
    pub fn effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// The one request to a backend among the effects so far.
    pub fn request(&mut self) -> (Ticket, Request) {
        let requests: Vec<_> = self
            .effects()
            .into_iter()
            .filter_map(|effect| match effect {
                Effect::Request { ticket, request } => Some((ticket, request)),
                _ => None,
            })
            .collect();
        assert_eq!(requests.len(), 1, "{requests:?}");
        requests.into_iter().next().unwrap()
    }

    pub fn complete(&mut self, ticket: Ticket, outcome: Result<(), Status>) {
        self.call(|controller, cx| controller.complete(ticket, outcome, cx));
    }

    pub fn reset(&mut self, kind: ResetKind) {
        self.call(|controller, cx| controller.reset(kind, cx));
    }
}

/// An admin command.
pub fn admin(opcode: AdminOpcode) -> Command {
    Command::admin(opcode, CommandId(0))
}
