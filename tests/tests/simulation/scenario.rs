//! One run: commands of all kinds at depth, troubles in between, and a look at everything at the end.

mod traffic;
mod trouble;

use bdev::fault::{Effect, Plan, Rule, When};
use bdev::request::{ErrorKind, Op};
use nvme_spec::{CommandId, Completion, Iova, Lba, Nsid, Status};
use std::collections::BTreeMap;
use vireo_tests::host::Buffer;
use vireo_tests::host::memory::PAGE;
use vireo_tests::random::Random;
use vireo_tests::simulated::client::SharedWorld;
use vireo_tests::simulated::{Fate, SimulatedHost, World};

use crate::layout::{DATA_PAGES, gather};
use crate::model::{BLOCK, Model};

/// The namespace.
const NSID: Nsid = Nsid(1);
/// Commands at a time; each has a zone of the device and memory of its own.
const SLOTS: usize = 12;
/// Blocks of a zone.
const ZONE: usize = 64;
/// Pages of a slot's memory: data, then lists.
const SLOT_PAGES: u64 = DATA_PAGES + 4;
/// Bytes of the host's memory.
const MEMORY: u64 = 8 << 20;

/// Which troubles there are.
#[derive(Clone, Copy, Debug, Default)]
pub struct Troubles {
    /// The device fails and delays requests.
    pub faults: bool,
    /// The host resets the controller, in all ways there are.
    pub resets: bool,
    /// The host takes memory back while commands use it.
    pub unmaps: bool,
    /// The worker dies.
    pub deaths: bool,
    /// The client goes and another comes.
    pub disconnects: bool,
    /// Limits come, change and go; the controller and the namespace are paused and go on.
    pub limits: bool,
    /// The device lies: writes are lost. No run may survive that.
    pub lies: bool,
}

/// What a command in flight is to do.
#[derive(Clone, Debug)]
enum Kind {
    Read,
    Write(Vec<u64>),
    Zero,
    Compare {
        equal: bool,
    },
    /// First and second command of a pair, in this order.
    FusedCompare {
        equal: bool,
    },
    FusedWrite(Vec<u64>),
    Copy {
        from: usize,
    },
    Harmless,
    /// Its memory was taken and came back with something else: what comes of it is known already, or is of no matter.
    Spoilt,
}

#[derive(Clone, Debug)]
struct Flight {
    slot: usize,
    queue: usize,
    first: usize,
    count: usize,
    kind: Kind,
    /// Where the data lies, in order.
    layout: Vec<Buffer>,
}

/// A run.
pub struct Scenario {
    random: Random,
    troubles: Troubles,
    world: SharedWorld,
    host: Option<SimulatedHost>,
    mapped: bool,
    model: Model,
    slots: Vec<Buffer>,
    control: Buffer,
    flights: BTreeMap<CommandId, Flight>,
    /// Commands of each slot in flight.
    busy: [u8; SLOTS],
    next_stamp: u64,
    /// The worker died: commands may be lost until the next reset.
    broken: bool,
}

impl Scenario {
    /// Everything follows from the seed.
    pub fn new(seed: u64, troubles: Troubles) -> Self {
        let mut random = Random::new(seed);
        let rule = |op, when, effect| Rule { op, range: None, when, effect };
        let mut rules = Vec::new();
        if troubles.faults {
            rules.push(rule(None, When::PerMillion(20_000), Effect::Fail(ErrorKind::Medium)));
            rules.push(rule(None, When::PerMillion(5_000), Effect::Fail(ErrorKind::Busy)));
            let delay = random.in_range(10_000..3_000_000);
            rules.push(rule(None, When::PerMillion(300_000), Effect::Delay(delay)));
        }
        if troubles.lies {
            rules.push(rule(Some(Op::Write), When::PerMillion(300_000), Effect::Lose));
        }
        let fate = Fate {
            plan: Plan { seed, rules },
            by_ring: random.one_in(2),
            handover_steps: random.in_range(0..20),
        };
        let mapped = random.one_in(2);
        let mut world = World::new(seed, 1, mapped, fate);
        world.add_namespace(NSID, (SLOTS * ZONE * BLOCK) as u64, 9);
        let mut scenario = Self {
            random,
            troubles,
            world: SharedWorld::new(world),
            host: None,
            mapped,
            model: Model::new(SLOTS * ZONE),
            slots: Vec::new(),
            control: Buffer { iova: Iova(0), len: 0 },
            flights: BTreeMap::new(),
            busy: [0; SLOTS],
            next_stamp: 1,
            broken: false,
        };
        scenario.come();
        scenario
    }

    /// Runs to the end.
    pub fn run(mut self) {
        for _ in 0..self.random.in_range(100..400) {
            match self.random.in_range(0..8) {
                0..4 => self.start(),
                4..6 => self.step(),
                6 => self.trouble(),
                _ => self.take(),
            }
        }
        self.settle();
        for slot in 0..SLOTS {
            self.read_zone(slot);
        }
        self.host.take().expect("a host").transport.disconnect();
    }

    fn step(&mut self) {
        self.world.get().step();
    }

    fn host(&mut self) -> &mut SimulatedHost {
        self.host.as_mut().expect("a client is there")
    }

    /// A client comes: its memory is mapped part by part.
    fn come(&mut self) {
        let mut host = self.world.attach(0, self.mapped, MEMORY);
        let whole = host.memory.whole();
        let slots_at = MEMORY - SLOTS as u64 * SLOT_PAGES * PAGE;
        self.control = whole.part(0, slots_at);
        let slot = |slot: u64| whole.part(slots_at + slot * SLOT_PAGES * PAGE, SLOT_PAGES * PAGE);
        self.slots = (0..SLOTS as u64).map(slot).collect();
        host.transport.unmap(whole);
        for part in [self.control].into_iter().chain(self.slots.iter().copied()) {
            host.transport.map(&host.memory, part);
        }
        self.host = Some(host);
        self.enable();
    }

    fn enable(&mut self) {
        let queues = self.random.in_range(1..5) as u16;
        let entries = self.random.in_range(4..40) as u32;
        let shadow = !self.mapped && self.random.one_in(2);
        let host = self.host();
        host.memory.release(2 * PAGE);
        host.enable();
        if shadow {
            host.use_shadow_doorbells();
        }
        host.create_queues(queues, entries);
        self.broken = false;
    }

    /// Takes what completed.
    fn take(&mut self) {
        for queue in 0..self.host().queues.len() {
            while let Some(completion) = self.host().poll(queue) {
                self.completed(queue, completion);
            }
        }
        self.step();
    }

    fn completed(&mut self, queue: usize, completion: Completion) {
        let flight = self.flights.remove(&completion.cid);
        let Some(flight) = flight else { panic!("{completion:?} answers no command in flight") };
        assert_eq!(
            (flight.queue, completion.sqid.0 as usize),
            (queue, queue + 1),
            "{completion:?}"
        );
        self.busy[flight.slot] -= 1;
        let status = completion.status();
        if std::env::var_os("VIREO_TRACE").is_some() {
            eprintln!("{flight:?}: {status}");
        }
        self.check_status(&flight, status);
        let Flight { first, count, .. } = flight;
        match flight.kind {
            Kind::Read if status.is_success() => {
                let data = gather(self.host(), &flight.layout);
                self.model.read(first, &data);
            }
            Kind::Write(stamps) if status.is_success() => self.model.wrote(first, &stamps),
            Kind::FusedWrite(stamps) if status.is_success() => self.model.wrote(first, &stamps),
            Kind::FusedWrite(_) if status.code() == Status::ABORTED_FAILED_FUSED => {}
            Kind::Write(stamps) | Kind::FusedWrite(stamps) => {
                self.model.may_have_written(first, &stamps);
            }
            Kind::Zero if status.is_success() => self.model.wrote(first, &vec![0; count]),
            Kind::Zero => self.model.may_have_written(first, &vec![0; count]),
            Kind::Copy { from } => match self.model.certain(from, count) {
                Some(stamps) if status.is_success() => self.model.wrote(first, &stamps),
                // What was copied is not known: each source block's possibilities.
                _ => self.model.may_have_copied(from, first, count),
            },
            Kind::Read | Kind::Compare { .. } | Kind::FusedCompare { .. } => {}
            Kind::Harmless | Kind::Spoilt => {}
        }
    }

    /// A status must have a reason.
    fn check_status(&self, flight: &Flight, status: Status) {
        let compare_failed = status.code() == Status::COMPARE_FAILURE;
        match flight.kind {
            Kind::Compare { equal } | Kind::FusedCompare { equal } if !equal => {
                assert!(!status.is_success(), "unequal data compares equal: {flight:?}");
                if compare_failed {
                    return;
                }
            }
            Kind::FusedWrite(_) if status.code() == Status::ABORTED_FAILED_FUSED => return,
            Kind::Spoilt => return,
            _ => {}
        }
        assert!(!compare_failed, "equal data compares unequal: {flight:?}");
        let excused = self.troubles.faults || self.troubles.unmaps || self.troubles.deaths;
        assert!(status.is_success() || excused, "{flight:?}: {status}");
    }

    fn read_zone(&mut self, slot: usize) {
        if self.troubles.limits {
            self.world.get().go_on(NSID);
        }
        for _ in 0..50 {
            let read = self.host().read(NSID, Lba((slot * ZONE) as u64), ZONE as u32, BLOCK as u64);
            match read {
                Ok(data) => return self.model.read(slot * ZONE, &data),
                Err(status) => assert!(self.troubles.faults, "{status}"),
            }
        }
        panic!("fifty reads in a row fail");
    }

    /// Waits for everything in flight.
    fn settle(&mut self) {
        if self.troubles.limits {
            self.world.get().go_on(NSID);
            self.world.get().limit_namespace(NSID, None);
            self.world.get().limit_controller(0, None);
        }
        for _ in 0..20_000 {
            if self.flights.is_empty() {
                return;
            }
            self.take();
        }
        let csts = self.host().csts();
        let world = self.world.get();
        let failure =
            world.queues(0).acknowledged.failure.load(std::sync::atomic::Ordering::Relaxed);
        panic!("commands are lost, {csts:?}, failure {failure}: {:?}", self.flights);
    }
}
