//! A worker with one controller, driven step by step.

use bdev::channel::{AnyChannel, Geometry};
use bdev::malloc::MallocChannel;
use bdev::null::NullChannel;
use ipc::device_memory::DeviceMemory;
use ipc::guest_memory::HostSlice;
use nvme_spec::command::{Command, NvmOpcode};
use nvme_spec::{CommandId, Completion, Iova, Lba, Nsid, Status};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use vireo_tests::client::{Queue, Rig};
use vireo_worker::clock::{Clock, Manual};
use vireo_worker::controller::Change;
use vireo_worker::notify::EventNotifier;
use vireo_worker::reactor::{ControlEnd, Message, Notice, Reactor};

/// Entries of the queues unless a test says otherwise.
pub const ENTRIES: u32 = 64;
/// Logical blocks of the namespaces, of 512 bytes.
pub const BLOCKS: u64 = 2048;
/// Bytes of the devices.
pub const DEVICE: u64 = BLOCKS * 512;

/// A clock that tests and reactor share.
#[derive(Clone, Default)]
pub struct Ticks(pub Rc<Manual>);

impl Clock for Ticks {
    fn now(&self) -> u64 {
        self.0.now()
    }
}

/// A worker.
pub struct Worker {
    /// Its poll loop.
    pub reactor: Reactor<Ticks, EventNotifier>,
    /// The control thread's end.
    pub control: ControlEnd,
    /// Its clock.
    pub clock: Ticks,
}

impl Worker {
    /// Without controllers.
    pub fn new() -> Self {
        let clock = Ticks::default();
        let (reactor, control) = Reactor::new(clock.clone(), EventNotifier);
        Self { reactor, control, clock }
    }

    /// Takes a controller on, with `queues` queue pairs of `entries` entries and a vector each, and a namespace of
    /// `channel` if there is one.
    pub fn attach(
        &mut self,
        id: u128,
        queues: usize,
        entries: u32,
        channel: Option<AnyChannel>,
    ) -> Rig {
        let (rig, controller) = Rig::new(id, queues);
        rig.add_namespace(0, BLOCKS, 9);
        (1..=queues).for_each(|qid| rig.add_queue(qid, entries, Some(qid as u32)));
        self.send(Message::Attach(Box::new(controller)));
        self.settle(&rig);
        if let Some(channel) = channel {
            self.send(rig.channel(0, channel));
            self.polls(2);
        }
        rig
    }

    pub fn send(&self, message: Message) {
        assert!(self.control.send(message).is_ok(), "the queue has room");
    }

    pub fn change(&self, rig: &Rig, change: Change) {
        self.send(Message::Change(rig.layout.id(), change));
    }

    /// Publishes what the rig changed, and polls until it is acknowledged.
    pub fn settle(&mut self, rig: &Rig) {
        let version = rig.publish();
        for _ in 0..100 {
            self.reactor.poll();
            if rig.is_acknowledged(version) {
                return;
            }
        }
        panic!("version {version} is not acknowledged");
    }

    pub fn polls(&mut self, count: usize) {
        (0..count).for_each(|_| {
            self.reactor.poll();
        });
    }

    /// Lets time pass, and the worker see it.
    pub fn pass(&mut self, nanoseconds: u64) {
        self.clock.0.advance(nanoseconds);
        self.polls(65);
    }

    pub fn notices(&self) -> Vec<Notice> {
        std::iter::from_fn(|| self.control.receive()).collect()
    }
}

/// A null device that answers after so many nanoseconds.
pub fn null(latency: u64) -> AnyChannel {
    AnyChannel::Null(NullChannel::new(Geometry { size: DEVICE, read_only: false }, latency))
}

/// A memory device, and the channel of its owner, which does everything.
pub fn malloc() -> (Arc<DeviceMemory>, AnyChannel) {
    let memory = Arc::new(DeviceMemory::create("device", DEVICE).expect("memory"));
    let leases = Arc::new(AtomicUsize::new(0));
    let channel = MallocChannel::owner(memory.clone(), false, leases);
    (memory, AnyChannel::Malloc(channel))
}

/// A command on `blocks` blocks from `slba` with its data at `buffer`.
pub fn io(opcode: NvmOpcode, cid: u16, slba: u64, blocks: u16, buffer: u64) -> Command {
    let second = if blocks > 8 { Iova(buffer + 4096) } else { Iova(0) };
    let mut command = Command::nvm(opcode, CommandId(cid), Nsid(1))
        .with_prps(Iova(buffer), second)
        .with_slba(Lba(slba));
    command.cdw12 = u32::from(blocks) - 1;
    command
}

pub fn read(cid: u16, slba: u64, buffer: u64) -> Command {
    io(NvmOpcode::READ, cid, slba, 8, buffer)
}

/// Submits one command and polls until its completion.
pub fn complete(worker: &mut Worker, queue: &mut Queue<'_>, command: Command) -> Completion {
    queue.push(command);
    queue.ring();
    for _ in 0..1000 {
        worker.reactor.poll();
        if let Some(entry) = queue.pop() {
            queue.acknowledge();
            assert_eq!(entry.cid, command.cid());
            return entry;
        }
    }
    panic!("no completion of {command:?}");
}

pub fn status_of(worker: &mut Worker, queue: &mut Queue<'_>, command: Command) -> Status {
    complete(worker, queue, command).status().code()
}

pub fn bytes(slice: &HostSlice<'_>) -> Vec<u8> {
    let mut bytes = vec![0; slice.len()];
    slice.copy_to(&mut bytes);
    bytes
}
