//! The target, stepped by hand.

mod limits;

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bdev::fault::Plan;
use ipc::device_memory::DeviceMemory;
use ipc::doorbell::DoorbellPage;
use ipc::event::EventFd;
use ipc::guest_memory::{Region, RegionId, RegionPolicy, RegionTable};
use ipc::layout::queues::QueuesLayout;
use ipc::segment::Segment;
use nvme::{
    ControllerConfig, Effect, NamespaceConfig, Protection, Subsystem, SubsystemConfig, Ticket,
    WorkerSeat,
};
use nvme_spec::Nsid;
use vfio_user::server::{Outcome, Reply, Session};
use vfio_user::version::Limits;
use vfio_user::{Errno, Header, framing};
use vireo_frontend::function::{Function, FunctionConfig};
use vireo_frontend::limits::SharedLimits;
use vireo_worker::clock::{Clock, Manual};
use vireo_worker::controller::{Attachment, BIT_BUCKET_BYTES, Change, Controller, Request};
use vireo_worker::notify::EventNotifier;
use vireo_worker::reactor::{ControlEnd, Message, Notice, Reactor};

use super::disk::Disk;
use crate::host::memory::memfd;
use crate::random::Random;

/// Steps after which something that must happen counts as hung.
const PATIENCE: u32 = 200_000;
/// Nanoseconds that pass at most between two steps.
const TICK: u64 = 20_000;

/// What may go wrong, and how often.
#[derive(Clone, Debug, Default)]
pub struct Fate {
    /// Faults of every channel that is opened.
    pub plan: Plan,
    /// I/O goes by rings alone.
    pub by_ring: bool,
    /// Handing something to the worker takes up to so many steps.
    pub handover_steps: u64,
}

/// One worker's clock, shared with the world that moves it.
#[derive(Clone, Default)]
pub struct Ticks(Rc<Manual>);

impl Clock for Ticks {
    fn now(&self) -> u64 {
        self.0.now()
    }
}

/// A target: a subsystem, its controllers, one worker, one backend.
pub struct World {
    /// Decides everything that has no reason of its own.
    pub random: Random,
    clock: Ticks,
    fate: Fate,
    subsystem: Arc<Mutex<Subsystem>>,
    limits: SharedLimits,
    reactor: Reactor<Ticks, EventNotifier>,
    control: ControlEnd,
    ends: Vec<End>,
    disks: Vec<Disk>,
    /// What backends were asked: when they answer, by which controller, and what.
    asked: Vec<(u64, usize, Ticket, nvme::Request)>,
    steps: u64,
}

/// One controller, and what the worker has of it.
struct End {
    function: Function,
    session: Session,
    queues: Arc<Segment<QueuesLayout>>,
    connected: bool,
    attached: bool,
    regions: BTreeMap<RegionId, Arc<Region>>,
    table: RegionTable,
    /// A number of `Wanted` that is on its way, and when it is there.
    giving: Option<(u64, u64)>,
    given: u64,
    done: Option<Result<(), Errno>>,
}

impl World {
    /// A target with `controllers` controllers and no namespace.
    pub fn new(seed: u64, controllers: usize, mapped: bool, fate: Fate) -> Self {
        let config = SubsystemConfig {
            nqn: "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555".into(),
            serial: "SIMULATED".into(),
            model: "Vireo NVMe Controller".into(),
            firmware: "1".into(),
            shared: controllers > 1,
        };
        let subsystem = Arc::new(Mutex::new(Subsystem::new(config).expect("subsystem")));
        let clock = Ticks::default();
        let (reactor, control) = Reactor::new(clock.clone(), EventNotifier);
        let ends = (0..controllers).map(|index| End::new(index, &subsystem, mapped)).collect();
        Self {
            random: Random::new(seed),
            clock,
            fate,
            subsystem,
            limits: SharedLimits::new("simulated"),
            reactor,
            control,
            ends,
            disks: Vec::new(),
            asked: Vec::new(),
            steps: 0,
        }
    }

    /// Adds a namespace on a new disk.
    pub fn add_namespace(&mut self, nsid: Nsid, bytes: u64, block_shift: u32) {
        let bdev = format!("disk{}", self.disks.len());
        self.disks.push(Disk::new(&bdev, bytes));
        let config = NamespaceConfig {
            nsid,
            backend: "b0".into(),
            bdev,
            size: bytes,
            block_shift,
            read_only: false,
            force_ring: self.fate.by_ring,
            deallocated_zeroes: true,
            protection: Protection::None,
        };
        self.lock().add_namespace(config).expect("add namespace");
        self.changed(None);
    }

    /// Takes a namespace away.
    pub fn remove_namespace(&mut self, nsid: Nsid) {
        self.lock().remove_namespace(nsid).expect("remove namespace");
        self.changed(None);
    }

    /// A client comes to the controller.
    pub fn connect(&mut self, index: usize) {
        let now = self.now();
        let end = &mut self.ends[index];
        let description = end.function.connect(now).expect("connect");
        end.session = Session::new(description, Limits::default());
        end.connected = true;
        self.attach(index);
    }

    /// The client goes without a word; returns when nothing of it is in flight.
    pub fn disconnect(&mut self, index: usize) {
        let now = self.now();
        self.ends[index].function.disconnect(now);
        self.run_until("a client that went is quiet", |world| {
            world.ends[index].function.is_quiet().then_some(())
        });
        if self.ends[index].attached {
            let id = self.ends[index].function.segment().id();
            self.control.send(Message::Detach(id)).ok().expect("room for a message");
            self.run_until("the worker let go", |world| {
                (!world.ends[index].attached).then_some(())
            });
        }
        let end = &mut self.ends[index];
        end.connected = false;
        end.function.worker_changed(0, None);
        end.function.forget_memory();
        end.regions.clear();
        end.table.clear();
        (end.giving, end.given) = (None, 0);
    }

    /// A message of the client's, in full; its reply if it wants one.
    pub fn message(
        &mut self,
        index: usize,
        bytes: &[u8],
        fds: Vec<std::os::fd::OwnedFd>,
    ) -> Option<Reply> {
        let header = Header::parse(bytes)?;
        let size = framing::check(&header).ok()?;
        let body = bytes.get(framing_body()..size)?;
        let now = self.now();
        let end = &mut self.ends[index];
        end.done = None;
        end.function.poll(now);
        let mut outcome = end.session.handle(&header, body, fds, &mut end.function);
        loop {
            match outcome {
                Outcome::Reply(reply) => return Some(reply),
                Outcome::Silent => return None,
                Outcome::Deferred(deferred) => {
                    let result =
                        self.run_until("a deferred act", |world| world.ends[index].done.take());
                    let end = &mut self.ends[index];
                    outcome = end.session.finish(deferred, result, &mut end.function);
                }
            }
        }
    }

    /// The worker is dead, and a new one takes its place.
    pub fn kill_worker(&mut self) {
        let (reactor, control) = Reactor::new(self.clock.clone(), EventNotifier);
        (self.reactor, self.control) = (reactor, control);
        self.disks.iter_mut().for_each(Disk::crash);
        for index in 0..self.ends.len() {
            if !self.ends[index].attached {
                continue;
            }
            let end = &mut self.ends[index];
            end.function.worker_changed(0, None);
            end.attached = false;
            end.regions.clear();
            end.table.clear();
            (end.giving, end.given) = (None, 0);
            // What a worker writes is its own: a successor starts with a segment of its own too, but counters go on.
            self.attach(index);
        }
    }

    /// Everything goes on a little.
    pub fn step(&mut self) {
        self.steps += 1;
        let tick = self.random.in_range(1..TICK);
        self.clock.0.advance(tick);
        // The reactor looks at its clock every 64 polls.
        let polls = self.random.in_range(1..96);
        (0..polls).for_each(|_| {
            self.reactor.poll();
        });
        while let Some(notice) = self.control.receive() {
            self.notice(notice);
        }
        let (now, ends) = (self.clock.now(), &self.ends);
        let regions = |id: u128| {
            let end = ends.iter().find(|end| end.attached && end.function.segment().id() == id);
            end.map(|end| &end.table)
        };
        self.disks.iter_mut().for_each(|disk| disk.step(now, regions));
        (0..self.ends.len()).for_each(|index| self.step_end(index));
        self.answer();
    }

    /// The worker alone goes on a little: what it leaves in its messages stays there.
    pub fn step_worker(&mut self) {
        self.clock.0.advance(TICK);
        (0..70).for_each(|_| {
            self.reactor.poll();
        });
    }

    /// Steps until `ask` has an answer.
    ///
    /// # Panics
    /// If it never has.
    #[track_caller]
    pub fn run_until<R>(&mut self, what: &str, mut ask: impl FnMut(&mut Self) -> Option<R>) -> R {
        for _ in 0..PATIENCE {
            if let Some(answer) = ask(self) {
                return answer;
            }
            self.step();
        }
        panic!("{what}: not within {PATIENCE} steps")
    }

    /// The controller's doorbell page, as a client maps it.
    pub fn doorbells(&self, index: usize) -> DoorbellPage {
        let fd = self.ends[index].function.doorbells().client_fd().expect("dup");
        DoorbellPage::open(fd).expect("map the doorbell page")
    }

    /// The function, to look at.
    pub fn function(&self, index: usize) -> &Function {
        &self.ends[index].function
    }

    /// The queues segment of the worker for a controller, to look at or to spoil.
    pub fn queues(&self, index: usize) -> &Arc<Segment<QueuesLayout>> {
        &self.ends[index].queues
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(self.clock.now())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Subsystem> {
        self.subsystem.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells every controller but one that namespaces changed.
    fn changed(&mut self, but: Option<usize>) {
        for (index, end) in self.ends.iter_mut().enumerate() {
            if Some(index) != but && end.connected {
                end.function.subsystem_changed();
            }
        }
    }

    fn attach(&mut self, index: usize) {
        let end = &mut self.ends[index];
        let function = &mut end.function;
        let layout = function.segment().read_only_fd().expect("reopen");
        let queues = end.queues.fd().try_clone_to_owned().expect("dup");
        let bucket = DeviceMemory::create("bucket", 4096).map(drop);
        bucket.expect("memory can be had");
        let attachment = Attachment {
            layout: Arc::new(Segment::open_read_only(layout).expect("map segment")),
            queues: Segment::open(queues).expect("map queues"),
            doorbells: DoorbellPage::open(function.doorbells().client_fd().expect("dup"))
                .expect("map doorbells"),
            frontend: EventFd::create().expect("eventfd"),
            worker: 0,
            bit_bucket: Region::map(
                memfd(BIT_BUCKET_BYTES),
                BIT_BUCKET_BYTES,
                &RegionPolicy::default(),
            )
            .expect("bit bucket"),
        };
        let mut controller = Box::new(Controller::new(attachment));
        limits::keep_to(&self.limits, function.controller().id(), &mut controller);
        self.control.send(Message::Attach(controller)).ok().expect("room for a message");
        end.attached = true;
    }

    fn step_end(&mut self, index: usize) {
        if !self.ends[index].connected {
            return;
        }
        let now = self.now();
        let end = &mut self.ends[index];
        if let Some(result) = end.function.poll(now) {
            end.done = Some(result);
        }
        for effect in end.function.take_effects() {
            match effect {
                Effect::Request { ticket, request } => {
                    let due = self.steps + self.random.in_range(0..20);
                    self.asked.push((due, index, ticket, request));
                }
                Effect::SubsystemChanged => self.changed(Some(index)),
                Effect::SubsystemReset => {
                    self.ends.iter_mut().for_each(|end| end.function.subsystem_reset());
                }
                // The worker polls anyway; signals went out already.
                Effect::KickWorkers | Effect::Signal { .. } => {}
            }
        }
        self.hand_over(index);
    }

    /// Gives the worker what it lacks of `Wanted`.
    fn hand_over(&mut self, index: usize) {
        let end = &mut self.ends[index];
        if !end.attached {
            return;
        }
        if let Some((number, due)) = end.giving {
            if self.steps >= due {
                end.giving = None;
                end.given = number;
                end.function.worker_changed(0, Some(number));
            }
            return;
        }
        let wanted = end.function.wanted().clone();
        if wanted.number == end.given {
            return;
        }
        let id = end.function.segment().id();
        let mut changes = Vec::new();
        for (&region, memory) in &wanted.regions {
            if !end.regions.get(&region).is_some_and(|had| Arc::ptr_eq(had, memory)) {
                changes.push(Change::AddRegion(region, Arc::clone(memory)));
                end.table.insert(region, Arc::clone(memory)).ok();
            }
        }
        for &region in end.regions.keys() {
            if !wanted.regions.contains_key(&region) {
                changes.push(Change::RemoveRegion(region));
                end.table.remove(region);
            }
        }
        end.regions = wanted.regions;
        let event = |fd: &Arc<std::os::fd::OwnedFd>| {
            let fd = fd.as_fd().try_clone_to_owned().expect("dup");
            EventFd::from_client(fd).expect("vectors are eventfds")
        };
        let events = wanted.vectors.iter().map(|fd| fd.as_ref().map(event)).collect();
        changes.push(Change::SetVectors(0, events));
        for change in changes {
            self.control.send(Message::Change(id, change)).ok().expect("room for a message");
        }
        let delay = self.random.in_range(0..self.fate.handover_steps + 1);
        // The worker takes messages in before it is asked again: one step at least.
        end.giving = Some((wanted.number, self.steps + 1 + delay));
    }

    fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::Request(id, Request::OpenChannel { namespace, generation, force_ring }) => {
                let Some(end) = self.ends.iter().find(|end| end.function.segment().id() == id)
                else {
                    return;
                };
                let Some(row) = end.function.segment().namespaces.get(namespace) else { return };
                let name = row.bdev.load();
                let Some(disk) = self.disks.iter_mut().find(|disk| disk.name == name) else {
                    return;
                };
                let mut plan = self.fate.plan.clone();
                plan.seed ^= self.random.next();
                let channel = Box::new(disk.open(id, force_ring || self.fate.by_ring, plan));
                let change = Change::Channel(namespace, generation, channel);
                self.control.send(Message::Change(id, change)).ok().expect("room for a message");
            }
            Notice::Detached(controller) => {
                let id = controller.id();
                let end = self.ends.iter_mut().find(|end| end.function.segment().id() == id);
                if let Some(end) = end {
                    end.attached = false;
                }
            }
            Notice::Changed(..) | Notice::Unknown(_) | Notice::Pong => {}
        }
    }

    /// Backends answer what is due.
    fn answer(&mut self) {
        let (due, asked) = std::mem::take(&mut self.asked)
            .into_iter()
            .partition::<Vec<_>, _>(|(due, ..)| *due <= self.steps);
        self.asked = asked;
        for (_, index, ticket, request) in due {
            if let nvme::Request::Format { bdev, .. } = &request
                && let Some(disk) = self.disks.iter().find(|disk| disk.name == *bdev)
            {
                disk.erase();
            }
            self.ends[index].function.complete(ticket, Ok(()));
        }
    }
}

impl End {
    fn new(index: usize, subsystem: &Arc<Mutex<Subsystem>>, mapped: bool) -> Self {
        let id = 0x5EED_0000 + index as u128;
        let queues = Arc::new(Segment::<QueuesLayout>::create("simulated", id).expect("segment"));
        let seat = WorkerSeat::new(Arc::clone(&queues));
        let mut shared = subsystem.lock().unwrap_or_else(PoisonError::into_inner);
        let controller = ControllerConfig {
            id: shared.add_controller().expect("room for a controller"),
            max_transfer: 1 << 20,
            io_queues: 16,
            vectors: 17,
            doorbells_mapped: mapped,
            vendor: 0x1b36,
            subsystem_vendor: 0x1b36,
        };
        drop(shared);
        let config = FunctionConfig {
            name: format!("vm{index}"),
            controller,
            subsystem: Arc::clone(subsystem),
            seats: vec![seat],
        };
        let function = Function::new(config, id).expect("function");
        let session =
            Session::new(vfio_user::server::DeviceDescription::pci(4096, 1), Limits::default());
        Self {
            function,
            session,
            queues,
            connected: false,
            attached: false,
            regions: BTreeMap::new(),
            table: RegionTable::new(),
            giving: None,
            given: 0,
            done: None,
        }
    }
}

/// Where a message's body begins.
const fn framing_body() -> usize {
    vfio_user::message::HEADER_SIZE
}
