//! A worker with one controller, driven step by step.

use bdev::channel::{AnyChannel, Geometry};
use bdev::malloc::MallocChannel;
use bdev::null::NullChannel;
use ipc::device_memory::DeviceMemory;
use ipc::guest_memory::HostSlice;
use ipc::layout::controller::QueueState;
use nvme_spec::command::{Command, NvmOpcode};
use nvme_spec::{CommandId, Completion, Iova, Lba, Nsid, Status};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use vireo_tests::client::rig::BUFFERS_AT;
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
        Self::by(Ticks::default())
    }

    /// The same, by a clock that others go by as well.
    pub fn by(clock: Ticks) -> Self {
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

    /// Resets a controller of one queue pair, and makes the pair anew.
    pub fn reset(&mut self, rig: &Rig) {
        rig.doorbells.clear();
        let generation = rig.layout.signals.reset_generation.fetch_add(1, Ordering::Release) + 1;
        rig.at(rig.buffers(1) - BUFFERS_AT, 512 << 10).fill(0);
        rig.add_queue(1, ENTRIES, Some(1));
        self.settle(rig);
        let seen = rig.queues.acknowledged.reset_generation.load(Ordering::Acquire);
        assert_eq!(seen, generation);
    }

    /// Has a submission queue deleted.
    pub fn delete_queue(&mut self, rig: &Rig, qid: usize) {
        let row = &rig.layout.submission_queues[qid];
        row.state.store(QueueState::Deleting as u32, Ordering::Release);
        self.settle(rig);
    }

    /// Fills the first of two queues with reads that wait, more than there are slots. The worker holds its share of them.
    pub fn overfill<'a>(&mut self, rig: &'a Rig, entries: u32) -> Queue<'a> {
        let mut queue = rig.queue(1, entries);
        (0..entries as u16 - 1).for_each(|cid| queue.push(read(cid, 0, rig.buffers(1))));
        queue.ring();
        self.polls(1000);
        let fetched = rig.queues.submission_queues[1].fetched.load(Ordering::Relaxed);
        assert!((1000..=1100).contains(&fetched), "a queue holds its share: {fetched}");
        queue
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
