//! One controller in this process: segments, guest memory and doorbells, filled as a frontend would.

use super::Queue;
use crate::wait;
use bdev::channel::AnyChannel;
use ipc::dma_table::{DmaRow, DmaWriter};
use ipc::doorbell::DoorbellPage;
use ipc::event::EventFd;
use ipc::guest_memory::{Access, HostSlice, Region, RegionId, RegionPolicy};
use ipc::iova::Iova;
use ipc::layout::controller::{ControllerLayout, ControllerState, QueueState};
use ipc::layout::queues::QueuesLayout;
use ipc::segment::Segment;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use vireo_worker::controller::{Attachment, BIT_BUCKET_BYTES, Change, Controller};
use vireo_worker::reactor::Message;

/// Guest address of guest memory.
pub const BASE: u64 = 0x1_0000_0000;
/// Bytes of guest memory that each queue pair has: its queues, then its buffers.
pub const PER_QUEUE: u64 = 4 << 20;
/// Bytes of guest memory at least, as a machine has: most of it is never touched.
pub const MEMORY: u64 = 2 << 30;
/// Where a queue pair's completion queue starts in its part.
pub const CQ_AT: u64 = 256 << 10;
/// Where a queue pair's buffers start in its part.
pub const BUFFERS_AT: u64 = 512 << 10;

/// A controller and its guest.
pub struct Rig {
    /// The controller segment, as the frontend has it.
    pub layout: Arc<Segment<ControllerLayout>>,
    /// The DMA table's writer.
    pub dma: DmaWriter,
    /// The queues segment, as the frontend sees it.
    pub queues: Segment<QueuesLayout>,
    /// The doorbell page, as the guest has it.
    pub doorbells: DoorbellPage,
    /// What the worker kicks the frontend with.
    pub kick: EventFd,
    /// Guest memory, as the guest has it.
    pub guest: Arc<Region>,
}

/// A memfd of that many bytes.
pub fn memory(bytes: u64) -> OwnedFd {
    let fd = memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).expect("memfd");
    ftruncate(&fd, bytes as i64).expect("room for guest memory");
    fd
}

impl Rig {
    /// A controller with guest memory for `queues` queue pairs, and its worker's side as a message to the reactor. It is
    /// enabled; it has no queue and no namespace.
    pub fn new(id: u128, queues: usize) -> (Self, Controller) {
        let bytes = MEMORY.max(PER_QUEUE * queues as u64);
        let fd = memory(bytes);
        let policy = RegionPolicy::default();
        let guest = Region::map(fd.try_clone().expect("descriptor"), bytes, &policy).expect("map");
        let theirs = Region::map(fd, bytes, &policy).expect("map");
        let layout =
            Arc::new(Segment::<ControllerLayout>::create("controller", id).expect("memfd"));
        let mut dma = DmaWriter::attach(layout.clone()).expect("table");
        let row = DmaRow {
            iova: Iova(BASE),
            size: bytes,
            region: Some(RegionId(0)),
            offset: 0,
            access: Access::READ_WRITE,
        };
        dma.map(row).expect("map");
        let queues = Segment::<QueuesLayout>::create("queues", id).expect("memfd");
        let doorbells = DoorbellPage::create().expect("memfd");
        let kick = EventFd::create().expect("eventfd");
        let bucket = Region::map(memory(BIT_BUCKET_BYTES), BIT_BUCKET_BYTES, &policy).expect("map");
        let clone = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().expect("descriptor");
        let read_only = layout.read_only_fd().expect("reopen");
        let mut controller = Controller::new(Attachment {
            layout: Arc::new(Segment::open_read_only(read_only).expect("map")),
            queues: Segment::open(clone(queues.fd())).expect("map"),
            doorbells: DoorbellPage::open(clone(doorbells.as_fd())).expect("map"),
            frontend: kick.try_clone().expect("descriptor"),
            worker: 0,
            bit_bucket: bucket,
        });
        let change = Change::AddRegion(RegionId(0), theirs);
        controller.apply(change, &mut vireo_worker::notify::EventNotifier);
        let rig = Self { layout, dma, queues, doorbells, kick, guest };
        rig.configure();
        (rig, controller)
    }

    fn configure(&self) {
        let settings = &self.layout.settings;
        settings.page_shift.store(12, Ordering::Relaxed);
        settings.max_transfer.store(1 << 20, Ordering::Relaxed);
        settings.write_cache.store(1, Ordering::Relaxed);
        settings.doorbells_mapped.store(1, Ordering::Relaxed);
        self.layout.signals.state.store(ControllerState::Enabled as u32, Ordering::Relaxed);
        self.publish();
    }

    /// Raises the version, and returns it.
    pub fn publish(&self) -> u64 {
        self.layout.signals.version.fetch_add(1, Ordering::Release) + 1
    }

    /// Whether the worker has acknowledged a version.
    pub fn is_acknowledged(&self, version: u64) -> bool {
        self.queues.acknowledged.version.load(Ordering::Acquire) >= version
    }

    /// Attaches a namespace in row `index` (NSID - 1) without publishing it.
    pub fn add_namespace(&self, index: usize, blocks: u64, block_shift: u32) {
        let row = &self.layout.namespaces[index];
        row.generation.fetch_add(1, Ordering::Relaxed);
        row.blocks.store(blocks, Ordering::Relaxed);
        row.block_shift.store(block_shift, Ordering::Relaxed);
        row.state.store(1, Ordering::Release);
    }

    /// The message that brings a namespace's channel.
    pub fn channel(&self, index: usize, channel: AnyChannel) -> Message {
        let generation = self.layout.namespaces[index].generation.load(Ordering::Relaxed);
        Message::Change(self.layout.id(), Change::Channel(index, generation, Box::new(channel)))
    }

    /// Creates a queue pair without publishing it.
    pub fn add_queue(&self, qid: usize, entries: u32, vector: Option<u32>) {
        let at = BASE + (qid as u64 - 1) * PER_QUEUE;
        let cq = &self.layout.completion_queues[qid];
        cq.generation.fetch_add(1, Ordering::Relaxed);
        cq.entries.store(entries, Ordering::Relaxed);
        cq.interrupts.store(u32::from(vector.is_some()), Ordering::Relaxed);
        cq.vector.store(vector.unwrap_or(0), Ordering::Relaxed);
        cq.base.store(at + CQ_AT, Ordering::Relaxed);
        cq.state.store(QueueState::Active as u32, Ordering::Release);
        let sq = &self.layout.submission_queues[qid];
        sq.generation.fetch_add(1, Ordering::Relaxed);
        sq.entries.store(entries, Ordering::Relaxed);
        sq.cqid.store(qid as u32, Ordering::Relaxed);
        sq.base.store(at, Ordering::Relaxed);
        sq.state.store(QueueState::Active as u32, Ordering::Release);
    }

    /// Guest address of the buffers of a queue pair.
    pub fn buffers(&self, qid: usize) -> u64 {
        BASE + (qid as u64 - 1) * PER_QUEUE + BUFFERS_AT
    }

    /// Guest memory at a guest address.
    pub fn at(&self, iova: u64, bytes: usize) -> HostSlice<'_> {
        self.guest.slice(iova - BASE, bytes, Access::READ_WRITE).expect("within guest memory")
    }

    /// The guest's side of a queue pair.
    pub fn queue(&self, qid: usize, entries: u32) -> Queue<'_> {
        let at = BASE + (qid as u64 - 1) * PER_QUEUE;
        let sq = self.at(at, entries as usize * 64);
        let cq = self.at(at + CQ_AT, entries as usize * 16);
        Queue::new(qid, entries, sq, cq, &self.doorbells)
    }

    /// Waits until the worker has acknowledged a version.
    pub fn settle(&self, version: u64) {
        wait::until("the worker's acknowledgement", || self.is_acknowledged(version));
    }
}
