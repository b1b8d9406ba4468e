//! An NVMe driver for one thread, over any transport.

use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nvme_spec::feature::{FeatureId, NumberOfQueues};
use nvme_spec::identify::{Cns, CommandSet};
use nvme_spec::register::{AdminQueueBase, Aqa, Cap, Cc, CommandSetSelected, Csts, offset};
use nvme_spec::{
    AdminOpcode, Command, CommandId, Completion, Iova, Lba, Nsid, NvmOpcode, QueueId, Status,
};
use std::os::fd::AsFd;

use super::commands;
use super::memory::{Buffer, HostMemory, PAGE};
use super::queue::QueuePair;
use super::transport::Transport;
use super::vfio_user::{Attach, VfioUser};
use crate::wait::PATIENCE;

/// Where the device sees the host's memory: not at 0, and above 4 GiB, so that cut addresses are noticed.
pub const MEMORY_BASE: Iova = Iova(0x20_0000_0000);
/// Entries of the admin queue.
const ADMIN_ENTRIES: u32 = 32;

/// A driver and the host around it.
pub struct Driver<T> {
    /// The way to the controller.
    pub transport: T,
    /// The host's memory.
    pub memory: HostMemory,
    /// The admin queue.
    pub admin: QueuePair,
    /// I/O queue pairs by QID - 1.
    pub queues: Vec<QueuePair>,
    /// Completions of the admin queue that nobody asked for by identifier: asynchronous events.
    pub events: Vec<Completion>,
    shadow: Option<Shadow>,
    next_cid: u16,
    mps: u8,
}

/// Shadow doorbells and event indexes. NVMe Base 2.0c B.5.
struct Shadow {
    doorbells: Buffer,
    event_indexes: Buffer,
}

impl Driver<VfioUser> {
    /// Attaches to a socket with the defaults and enables the controller, with one I/O queue pair of 64 entries.
    #[track_caller]
    pub fn connect(socket: impl AsRef<std::path::Path>) -> Self {
        let mut host = Self::attach(socket, &Attach::default());
        host.enable();
        host.create_queues(1, 64);
        host
    }

    /// Attaches to a socket; the controller is not enabled.
    #[track_caller]
    pub fn attach(socket: impl AsRef<std::path::Path>, how: &Attach) -> Self {
        let memory = HostMemory::new(MEMORY_BASE, how.memory);
        let transport = VfioUser::attach(socket.as_ref(), how, &memory).expect("attach");
        Self::new(transport, memory)
    }
}

impl<T: Transport> Driver<T> {
    /// A driver that has not touched its controller yet.
    pub fn new(transport: T, mut memory: HostMemory) -> Self {
        let admin = QueuePair::allocate(&mut memory, QueueId(0), ADMIN_ENTRIES, 0);
        let (queues, events) = (Vec::new(), Vec::new());
        Self { transport, memory, admin, queues, events, shadow: None, next_cid: 0, mps: 0 }
    }

    /// A register of 4 bytes.
    pub fn read32(&mut self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.transport.read_register(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// A register of 8 bytes.
    pub fn read64(&mut self, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        self.transport.read_register(offset, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// Writes a register of 4 bytes.
    pub fn write32(&mut self, offset: u64, value: u32) {
        self.transport.write_register(offset, &value.to_le_bytes());
    }

    /// Writes a register of 8 bytes.
    pub fn write64(&mut self, offset: u64, value: u64) {
        self.transport.write_register(offset, &value.to_le_bytes());
    }

    /// Controller Capabilities.
    pub fn cap(&mut self) -> Cap {
        Cap::from_bits(self.read64(offset::CAP))
    }

    /// Controller Status.
    pub fn csts(&mut self) -> Csts {
        Csts::from_bits(self.read32(offset::CSTS))
    }

    /// What Linux writes to CC, but for CC.EN: entry sizes, 4 KiB pages, NVM command set.
    pub fn cc() -> Cc {
        Cc::new().with_iosqes(6).with_iocqes(4).with_css(CommandSetSelected::NVM)
    }

    /// Has memory pages of 4096 << `mps` bytes from the next [`Driver::enable`] on.
    pub fn use_pages(&mut self, mps: u8) {
        self.mps = mps;
        self.memory.set_page(PAGE << mps);
        self.admin = QueuePair::allocate(&mut self.memory, QueueId(0), ADMIN_ENTRIES, 0);
    }

    /// Disables the controller and waits for CSTS.RDY 0.
    #[track_caller]
    pub fn disable(&mut self) {
        self.write32(offset::CC, Self::cc().into_bits());
        self.wait("CSTS.RDY 0", |host| (!host.csts().rdy()).then_some(()));
        self.queues.clear();
        self.shadow = None;
    }

    /// Disables the controller, sets up an empty admin queue, enables it and waits for CSTS.RDY 1.
    #[track_caller]
    pub fn enable(&mut self) {
        self.disable();
        self.admin.reset(&self.memory);
        self.events.clear();
        let size_z = (ADMIN_ENTRIES - 1) as u16;
        self.write32(offset::AQA, Aqa::new().with_asqs_z(size_z).with_acqs_z(size_z).into_bits());
        let base = |iova: Iova| AdminQueueBase::new().with_page(iova.0 / PAGE).into_bits();
        self.write64(offset::ASQ, base(self.admin.sq.iova));
        self.write64(offset::ACQ, base(self.admin.cq.iova));
        self.write32(offset::CC, Self::cc().with_mps(self.mps).with_en(true).into_bits());
        self.wait("CSTS.RDY 1", |host| host.csts().rdy().then_some(()));
    }

    /// Sends an admin command and waits for its completion.
    #[track_caller]
    pub fn admin(&mut self, command: Command) -> Completion {
        let cid = self.post_admin(command);
        self.await_admin(cid)
    }

    /// Sends an admin command, which must succeed.
    #[track_caller]
    pub fn admin_ok(&mut self, command: Command) -> Completion {
        let completion = self.admin(command);
        assert!(
            completion.status().is_success(),
            "{:?}: {}",
            command.admin_opcode(),
            completion.status()
        );
        completion
    }

    /// Sends an admin command that brings `bytes` back; they are returned if it succeeds.
    #[track_caller]
    pub fn admin_read(&mut self, command: Command, bytes: u64) -> Result<Vec<u8>, Status> {
        let before = self.memory.mark();
        let buffer = self.memory.allocate(bytes);
        self.memory.fill(buffer, 0xEE);
        let command = self.memory.with_prps(command, buffer);
        let status = self.admin(command).status();
        let data = self.memory.read(buffer.iova, bytes as usize);
        self.memory.release(before);
        if status.is_success() { Ok(data) } else { Err(status) }
    }

    /// Sends an admin command and does not wait.
    #[track_caller]
    pub fn post_admin(&mut self, command: Command) -> CommandId {
        let cid = self.next_cid();
        let command = with_cid(command, cid);
        self.admin.push(&self.memory, command);
        let (doorbell, tail) = (self.admin.doorbell(), self.admin.tail);
        self.transport.ring(doorbell, tail);
        cid
    }

    /// Waits for the completion of an admin command that was posted.
    #[track_caller]
    pub fn await_admin(&mut self, cid: CommandId) -> Completion {
        self.wait("an admin completion", |host| {
            if let Some(found) = host.events.iter().position(|event| event.cid == cid) {
                return Some(host.events.remove(found));
            }
            host.poll_admin();
            None
        })
    }

    /// Takes what the admin completion queue holds into `events`.
    pub fn poll_admin(&mut self) {
        while let Some(completion) = self.admin.pop(&self.memory) {
            assert_eq!(completion.sqid, QueueId(0));
            self.events.push(completion);
            let (doorbell, head) = (self.admin.doorbell() + 1, self.admin.head);
            self.transport.ring(doorbell, head);
        }
    }

    /// Identify Namespace, as bytes.
    #[track_caller]
    pub fn identify(&mut self, cns: Cns, nsid: Nsid) -> Vec<u8> {
        let command = commands::identify(cns, nsid, CommandSet::NVM);
        self.admin_read(command, 4096).expect("identify")
    }

    /// Asks for `count` I/O queue pairs and creates them; vectors go round.
    #[track_caller]
    pub fn create_queues(&mut self, count: u16, entries: u32) {
        let wanted = NumberOfQueues::new().with_nsq_z(count - 1).with_ncq_z(count - 1).into_bits();
        let granted =
            self.admin_ok(commands::set_features(FeatureId::NUMBER_OF_QUEUES, Nsid::NONE, wanted));
        let granted = NumberOfQueues::from_bits(granted.dw0);
        assert!(granted.nsq_z() + 1 >= count && granted.ncq_z() + 1 >= count, "{granted:?}");
        for index in 0..count {
            let vector = if self.transport.vector(index + 1).is_some() { index + 1 } else { 0 };
            let queue = QueuePair::allocate(&mut self.memory, QueueId(index + 1), entries, vector);
            self.create_queue(queue);
        }
    }

    /// Creates the queue pair of this identifier, which is the next one.
    #[track_caller]
    pub fn create_queue_of(&mut self, qid: u16, entries: u32) {
        let queue = QueuePair::allocate(&mut self.memory, QueueId(qid), entries, 0);
        self.create_queue(queue);
    }

    /// Creates a queue pair.
    #[track_caller]
    pub fn create_queue(&mut self, queue: QueuePair) {
        assert_eq!(usize::from(queue.qid.0), self.queues.len() + 1, "queues are made in order");
        self.admin_ok(commands::create_cq(&queue));
        self.admin_ok(commands::create_sq(&queue));
        self.queues.push(queue);
    }

    /// Puts a command on an I/O queue and rings.
    #[track_caller]
    pub fn submit(&mut self, queue: usize, command: Command) -> CommandId {
        let cid = self.next_cid();
        self.queues[queue].push(&self.memory, with_cid(command, cid));
        self.ring_tail(queue);
        cid
    }

    /// Puts two commands on an I/O queue and rings once, as a fused pair must be.
    #[track_caller]
    pub fn submit_pair(&mut self, queue: usize, pair: [Command; 2]) -> [CommandId; 2] {
        let cids = pair.map(|command| {
            let cid = self.next_cid();
            self.queues[queue].push(&self.memory, with_cid(command, cid));
            cid
        });
        self.ring_tail(queue);
        cids
    }

    /// Rings a queue's tail as it stands.
    pub fn ring_tail(&mut self, queue: usize) {
        let (doorbell, tail) = (self.queues[queue].doorbell(), self.queues[queue].tail);
        self.ring(doorbell, tail);
    }

    /// The next completion of an I/O queue, if it is there.
    pub fn poll(&mut self, queue: usize) -> Option<Completion> {
        let pair = &mut self.queues[queue];
        let completion = pair.pop(&self.memory)?;
        let (doorbell, head) = (pair.doorbell() + 1, pair.head);
        self.ring(doorbell, head);
        Some(completion)
    }

    /// Waits for the next completion of an I/O queue.
    #[track_caller]
    pub fn next_completion(&mut self, queue: usize) -> Completion {
        self.wait("a completion", |host| host.poll(queue))
    }

    /// Sends an I/O command on an otherwise empty queue and waits for its completion.
    #[track_caller]
    pub fn io(&mut self, queue: usize, command: Command) -> Completion {
        let cid = self.submit(queue, command);
        let completion = self.next_completion(queue);
        assert_eq!((completion.cid, completion.sqid), (cid, self.queues[queue].qid));
        completion
    }

    /// Reads blocks of `block` bytes.
    #[track_caller]
    pub fn read(
        &mut self,
        nsid: Nsid,
        slba: Lba,
        blocks: u32,
        block: u64,
    ) -> Result<Vec<u8>, Status> {
        let before = self.memory.mark();
        let bytes = u64::from(blocks) * block;
        let buffer = self.memory.allocate(bytes);
        self.memory.fill(buffer, 0xEE);
        let command = commands::io(NvmOpcode::READ, nsid, slba, blocks);
        let command = self.memory.with_prps(command, buffer);
        let status = self.io(0, command).status();
        let data = self.memory.read(buffer.iova, bytes as usize);
        self.memory.release(before);
        if status.is_success() { Ok(data) } else { Err(status) }
    }

    /// Writes whole blocks of `block` bytes.
    #[track_caller]
    pub fn write(&mut self, nsid: Nsid, slba: Lba, data: &[u8], block: u64) -> Result<(), Status> {
        let before = self.memory.mark();
        let buffer = self.memory.allocate(data.len() as u64);
        self.memory.write(buffer.iova, data);
        let blocks = (data.len() as u64 / block) as u32;
        let command = commands::io(NvmOpcode::WRITE, nsid, slba, blocks);
        let command = self.memory.with_prps(command, buffer);
        let status = self.io(0, command).status();
        self.memory.release(before);
        if status.is_success() { Ok(()) } else { Err(status) }
    }

    /// Has the controller take doorbells from memory (Doorbell Buffer Config).
    #[track_caller]
    pub fn use_shadow_doorbells(&mut self) {
        let shadow = Shadow {
            doorbells: self.memory.allocate(self.memory.page()),
            event_indexes: self.memory.allocate(self.memory.page()),
        };
        self.memory.fill(shadow.doorbells, 0);
        self.memory.fill(shadow.event_indexes, 0);
        let command = Command::admin(AdminOpcode::DOORBELL_BUFFER_CONFIG, CommandId(0))
            .with_prps(shadow.doorbells.iova, shadow.event_indexes.iova);
        self.admin_ok(command);
        self.shadow = Some(shadow);
    }

    /// Waits until the eventfd of a vector was signalled, and takes the signal.
    #[track_caller]
    pub fn await_interrupt(&mut self, vector: u16) {
        let event = self.transport.vector(vector).expect("the vector has an eventfd");
        let mut fds = [PollFd::new(event.as_fd(), PollFlags::POLLIN)];
        let bound = PollTimeout::try_from(PATIENCE).expect("patience is short");
        let ready = poll(&mut fds, bound).expect("poll");
        assert!(ready == 1, "vector {vector} was not signalled within {PATIENCE:?}");
        event.drain().expect("drain");
    }

    /// Asks again and again, and lets the target go on in between.
    ///
    /// # Panics
    /// If there is no answer within [`PATIENCE`].
    #[track_caller]
    pub fn wait<R>(&mut self, what: &str, mut ask: impl FnMut(&mut Self) -> Option<R>) -> R {
        let found = self.wait_for(PATIENCE, &mut ask);
        found.unwrap_or_else(|| panic!("{what}: not within {PATIENCE:?}"))
    }

    /// As [`Driver::wait`], `None` after `bound`.
    pub fn wait_for<R>(
        &mut self,
        bound: Duration,
        ask: &mut impl FnMut(&mut Self) -> Option<R>,
    ) -> Option<R> {
        let end = Instant::now() + bound;
        loop {
            if let Some(answer) = ask(self) {
                return Some(answer);
            }
            if Instant::now() >= end {
                return None;
            }
            self.transport.relax();
        }
    }

    /// Rings an I/O queue's doorbell: in memory, and by the register if the controller asked for it.
    fn ring(&mut self, index: usize, value: u32) {
        let Some(shadow) = &self.shadow else { return self.transport.ring(index, value) };
        let at = |buffer: Buffer| self.memory.slice(buffer.part(index as u64 * 4, 4).iova, 4);
        let doorbell = at(shadow.doorbells);
        let old = doorbell.load_u32(0, Ordering::Relaxed).expect("doorbells are aligned");
        // Release: the controller that sees the tail sees the command.
        doorbell.store_u32(0, value, Ordering::Release);
        // The store above before the load below, as the controller stores and loads them the other way round.
        fence(Ordering::SeqCst);
        let event = at(shadow.event_indexes).load_u32(0, Ordering::Relaxed).expect("aligned");
        // All 16 bits of the positions wrap around together.
        let (event, value, old) = (event as u16, value as u16, old as u16);
        if value.wrapping_sub(event).wrapping_sub(1) < value.wrapping_sub(old) {
            self.transport.ring(index, u32::from(value));
        }
    }

    fn next_cid(&mut self) -> CommandId {
        self.next_cid = self.next_cid.wrapping_add(1);
        CommandId(self.next_cid)
    }
}

fn with_cid(mut command: Command, cid: CommandId) -> Command {
    command.cdw0.set_cid(cid);
    command
}
