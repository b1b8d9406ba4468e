//! One controller's I/O queues on this worker. On the hot path: allocates nothing per command.
//!
//! A poll takes in what the frontend changed, what channels completed and what the guest submitted, in the commit order
//! of `ipc::layout::queues`. The parts: `tables` follows the controller segment, `fetch` takes commands in, `run`
//! brings them to their channels (`steps` and `fused` those that are not one request), `channels` takes back what these
//! completed, `commit` completes, `signal` tells the guest, `park` goes before sleep.

mod channels;
mod commit;
mod fetch;
mod fused;
mod limit;
mod park;
mod pause;
mod run;
mod signal;
mod steps;
mod tables;
mod tally;
mod trace;
mod waiting;

use crate::doorbells::Shadow;
use crate::interrupt::Vectors;
use crate::namespaces::Namespaces;
use crate::notify::Notifier;
use crate::queue_pair::{Cq, Sq};
use crate::slots::Slots;
use bdev::channel::AnyChannel;
use bdev::request::Outcome;
use ipc::doorbell::DoorbellPage;
use ipc::event::EventFd;
use ipc::guest_memory::{GuestMemory, Line, Region, RegionId};
use ipc::layout::controller::{ControllerLayout, ControllerState};
use ipc::layout::queues::{FailureReason, QueuesLayout};
use ipc::layout::{MAX_IN_FLIGHT, MAX_QUEUES};
use ipc::segment::Segment;
use limit::Limits;
use nvme::nvm::{Settings, Steps};
use nvme::prp::PageShift;
use nvme::queue::arbitration::{MAX_BURST, Rotation, burst};
use nvme::range_list::{BIT_BUCKET, RangeList, ranges_for};
use nvme_spec::Status;
use nvme_spec::command::Command;
use pause::Pause;
use run::Checked;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tables::Seen;
use tally::Tally;
use trace::Tracing;

/// Largest transfer that is served, whatever the segment says: lists are as long as this needs.
pub const MAX_TRANSFER: u32 = 4 << 20;
/// Commands that are checked ahead of their turn need a list each; a power of two.
const LISTS: usize = 4;
/// Commands that are completed together at most.
const COMMIT_BATCH: usize = 32;
/// Commands of several requests that are under way at a time; further ones wait.
const STEP_POOL: usize = 4;
/// Bytes of the bit bucket.
pub const BIT_BUCKET_BYTES: u64 = MAX_TRANSFER as u64;

const _: () = assert!(MAX_BURST as usize <= MAX_IN_FLIGHT);
const _: () = assert!(ranges_for(MAX_TRANSFER) <= ipc::layout::channel::MAX_REQUEST_RANGES);

/// What attaches a controller to a worker: the segments and descriptors of one handoff message.
pub struct Attachment {
    /// The controller segment, read only.
    pub layout: Arc<Segment<ControllerLayout>>,
    /// The queues segment of this worker.
    pub queues: Segment<QueuesLayout>,
    /// The doorbell page.
    pub doorbells: DoorbellPage,
    /// Kicks the frontend.
    pub frontend: EventFd,
    /// The number by which queue rows name this worker.
    pub worker: u32,
    /// Memory for bit buckets, [`BIT_BUCKET_BYTES`] long.
    pub bit_bucket: Arc<Region>,
}

/// What a controller asks of the control thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// A channel to the block device that the row of the namespace table names.
    OpenChannel {
        /// The row.
        namespace: usize,
        /// The row's generation.
        generation: u32,
        /// Not a lease.
        force_ring: bool,
    },
}

/// What the control thread changes.
pub enum Change {
    /// Memory of the client.
    AddRegion(RegionId, Arc<Region>),
    /// Memory that is no longer used.
    RemoveRegion(RegionId),
    /// Eventfds of the vectors from the first on; `None` takes one away.
    SetVectors(usize, Vec<Option<EventFd>>),
    /// The channel of a namespace's row and generation.
    Channel(usize, u32, Box<AnyChannel>),
    /// The backend behind a channel that was opened for this row is gone; the channel by its
    /// `crate::namespaces::address`. It may be in use no more. What it has outstanding may be under way all the same.
    BackendGone(usize, usize),
    /// Nothing is under way any more of what that channel had outstanding when its backend went: it ends now.
    BackendEnded(usize, usize),
}

/// What is to be dropped elsewhere: unmapping and closing are system calls.
#[derive(Default)]
pub struct Garbage {
    /// It comes of a [`Change`], which is made now.
    pub of_change: bool,
    /// Memory.
    pub region: Option<Arc<Region>>,
    /// Channel.
    pub channel: Option<Box<AnyChannel>>,
    /// Eventfds.
    pub events: Vec<Option<EventFd>>,
}

/// A command that was just fetched.
#[derive(Clone, Copy)]
struct Fetched {
    line: Line,
    slot: u16,
}

impl Fetched {
    #[inline(always)]
    fn command(&self) -> &Command {
        Command::of_words(self.line.words())
    }
}

/// A command that has its outcome.
#[derive(Clone, Copy)]
struct Finished {
    slot: u16,
    sqid: u16,
    cid: u16,
    status: Status,
    dw0: u32,
}

/// A controller on this worker.
pub struct Controller {
    layout: Arc<Segment<ControllerLayout>>,
    queues: Segment<QueuesLayout>,
    page: DoorbellPage,
    frontend: EventFd,
    worker: u32,
    memory: GuestMemory,

    seen: Seen,
    state: ControllerState,
    settings: Settings,
    burst: u32,
    mapped: bool,
    shadow: Option<Shadow>,
    failure: Option<FailureReason>,

    sqs: Vec<Option<Sq>>,
    cqs: Vec<Option<Cq>>,
    rotation: Rotation,
    namespaces: Namespaces,
    vectors: Vectors,
    slots: Slots,

    lists: [RangeList; LISTS],
    checked: [Checked; LISTS],
    tallied: Tally,
    batch: Vec<Fetched>,
    finished: Vec<Finished>,
    completed: Vec<(u32, Outcome)>,
    waiting: VecDeque<u16>,
    steps: Vec<Steps>,
    free_steps: Vec<u16>,
    /// Completion queues with entries that were neither reaped nor signalled.
    owed: u128,
    requests: VecDeque<Request>,
    garbage: VecDeque<Garbage>,
    kick: bool,
    admin_tail: u32,
    tracing: Tracing,
    limits: Limits,
    pause: Pause,
}

impl Controller {
    /// Takes a controller over. What the segments say is taken in by the first poll.
    pub fn new(attachment: Attachment) -> Self {
        let Attachment { layout, queues, doorbells, frontend, worker, bit_bucket } = attachment;
        let mut memory = GuestMemory::new(layout.clone());
        // The id is below the table's size.
        memory.regions_mut().insert(BIT_BUCKET, bit_bucket).ok();
        let list = || RangeList::with_capacity(ranges_for(MAX_TRANSFER));
        // A fused pair's list holds two transfers.
        let lists = [list(), list(), list(), list()];
        let settings =
            Settings { page: PageShift::MIN, max_transfer: MAX_TRANSFER, write_cache: true };
        let admin_tail = doorbells.load(0);
        // What made the worker give the controller up was an earlier client's. Release: as in `fail`.
        queues.acknowledged.failure.store(FailureReason::None as u32, Ordering::Release);
        Self {
            layout,
            queues,
            page: doorbells,
            frontend,
            worker,
            memory,
            seen: Seen::default(),
            state: ControllerState::Disabled,
            settings,
            burst: burst(0),
            mapped: true,
            shadow: None,
            failure: None,
            sqs: (0..MAX_QUEUES).map(|_| None).collect(),
            cqs: (0..MAX_QUEUES).map(|_| None).collect(),
            rotation: Rotation::default(),
            namespaces: Namespaces::new(),
            vectors: Vectors::default(),
            slots: Slots::new(),
            lists,
            checked: [Checked::NONE; LISTS],
            tallied: Tally::default(),
            batch: Vec::with_capacity(MAX_BURST as usize + 1),
            finished: Vec::with_capacity(COMMIT_BATCH),
            completed: Vec::with_capacity(MAX_IN_FLIGHT),
            waiting: VecDeque::with_capacity(MAX_IN_FLIGHT),
            steps: (0..STEP_POOL).map(|_| Steps::default()).collect(),
            free_steps: (0..STEP_POOL as u16).collect(),
            owed: 0,
            requests: VecDeque::new(),
            garbage: VecDeque::new(),
            kick: false,
            admin_tail,
            tracing: Tracing::default(),
            limits: Limits::default(),
            pause: Pause::default(),
        }
    }

    /// The controller's id.
    pub fn id(&self) -> u128 {
        self.layout.id()
    }

    /// Does what there is to do, bounded. Returns how much that was; 0 is nothing.
    #[inline]
    pub fn poll(&mut self, now: u64, notifier: &mut impl Notifier) -> usize {
        let mut work = 0;
        if self.seen.is_outdated(&self.layout.signals) {
            self.take_in(now);
            work += 1;
        }
        // What channels owe is in flight here.
        if !self.slots.submitted().is_empty() {
            work += self.poll_channels(now);
        }
        if self.failure.is_none() {
            if !self.waiting.is_empty() {
                work += self.retry(now);
            }
            if now >= self.limits.due {
                work += self.release(now);
            }
            if self.state == ControllerState::Enabled {
                work += self.scan(now);
            }
        }
        self.commit();
        if work > 0 {
            self.publish_channels();
        }
        if self.owed != 0 {
            work += self.signal(now, notifier);
            if self.tracing.awaits_interrupt() {
                self.trace_signalled();
            }
        }
        if self.seen.is_pending(work) {
            self.acknowledge();
        }
        if self.page.load(0) != self.admin_tail {
            self.admin_tail = self.page.load(0);
            self.kick = true;
            work += 1;
        }
        if self.kick {
            self.kick = false;
            // The frontend's eventfd is ours: it does not block.
            notifier.signal(&self.frontend).ok();
        }
        work
    }

    /// Takes in a change.
    pub fn apply(&mut self, change: Change, notifier: &mut impl Notifier) {
        let mut garbage = Garbage { of_change: true, ..Garbage::default() };
        match change {
            Change::AddRegion(id, region) => {
                garbage.region = match self.memory.regions_mut().insert(id, region) {
                    Ok(old) => old,
                    Err(unusable) => Some(unusable),
                };
                if let Some(old) = &garbage.region {
                    self.namespaces.forget(old);
                }
            }
            Change::RemoveRegion(id) => {
                self.forget_queue_memory();
                garbage.region = self.memory.regions_mut().remove(id);
                if let Some(region) = &garbage.region {
                    self.namespaces.forget(region);
                }
            }
            Change::SetVectors(start, events) => match self.vectors.set(start, events, notifier) {
                Ok(old) => garbage.events = old,
                Err(_) => self.fail(FailureReason::StuckInterrupt),
            },
            Change::Channel(row, generation, channel) => {
                garbage.channel = self.namespaces.install(row, generation, channel);
            }
            Change::BackendGone(row, channel) => self.backend_gone(row, channel),
            Change::BackendEnded(row, channel) => self.backend_ended(row, channel),
        }
        self.garbage.push_back(garbage);
    }

    /// The next thing to ask of the control thread.
    pub fn take_request(&mut self) -> Option<Request> {
        self.requests.pop_front()
    }

    /// The next thing to drop elsewhere.
    pub fn take_garbage(&mut self) -> Option<Garbage> {
        self.garbage.pop_front()
    }

    /// Whether something is to be asked or dropped.
    #[inline]
    pub fn has_errands(&self) -> bool {
        !self.requests.is_empty() || !self.garbage.is_empty()
    }

    /// Whether a block device may still touch the guest's memory.
    pub fn is_busy(&self) -> bool {
        !self.slots.submitted().is_empty()
    }

    /// Lets go of all queues, as a reset does: what is in flight ends without a completion.
    pub fn stop(&mut self) {
        self.drop_queues();
        self.state = ControllerState::Disabled;
        self.failure.get_or_insert(FailureReason::None);
    }

    /// Whether the guest rings where only polling sees it.
    pub fn is_mapped(&self) -> bool {
        self.mapped
    }
}
